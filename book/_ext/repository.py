"""One setting holds the repository's address; while it is empty, no page has a button that leads nowhere."""


def drop_buttons(app, config) -> None:
    """Without `repository: url` in _config.yml there is nothing to launch or to link."""
    options = config.html_theme_options
    if not options.get("repository_url"):
        options["launch_buttons"] = {}
        for name in (
            "use_repository_button",
            "use_issues_button",
            "use_edit_page_button",
        ):
            options[name] = False


def setup(app):
    """Register."""
    app.connect("config-inited", drop_buttons, priority=900)
    return {"parallel_read_safe": True}
