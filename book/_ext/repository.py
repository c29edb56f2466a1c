"""One setting holds the repository's address; while it is empty, no page has a button that leads nowhere."""


def buttons(app, config) -> None:
    """Show the buttons where `repository: url` in _config.yml says whereto."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options["use_repository_button"] = True
    else:
        options["launch_buttons"] = {}


def setup(app):
    """Register."""
    app.connect("config-inited", buttons, priority=900)
    return {"parallel_read_safe": True}
