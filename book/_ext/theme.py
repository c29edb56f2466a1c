"""What comes with the theme and has no use here: thebe, which would fetch itself from outside, and scripts that come twice."""


def without_thebe(app, config) -> None:
    """Forget every hook of sphinx-thebe; Jupyter Book loads it always."""
    for event, listeners in app.events.listeners.items():
        app.events.listeners[event] = [
            one for one in listeners if one.handler.__module__ != "sphinx_thebe"
        ]


def once(app, pagename, templatename, context, doctree) -> None:
    """Keep the first of scripts that say the same, and no style sheet that is not there."""
    kept = {}
    for script in context["script_files"]:
        kept.setdefault((script.filename, script.attributes.get("body")), script)
    context["script_files"] = list(kept.values())
    context["css_files"] = [
        sheet
        for sheet in context["css_files"]
        if "thebe" not in str(sheet.filename)
    ]


def setup(app):
    """Register."""
    app.connect("config-inited", without_thebe)
    app.connect("html-page-context", once)
    return {"parallel_read_safe": True}
