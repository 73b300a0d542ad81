"""The HTML documents: made without a warning, and with all that they are to have."""

import subprocess

from sandboxes import CHECKOUT

DOCS_SECONDS = 600.0
"""The first time Sphinx is installed."""


def test_documents_are_made_without_a_warning() -> None:
    done = subprocess.run(
        [CHECKOUT / "tools" / "docs"], capture_output=True, text=True, check=False, timeout=DOCS_SECONDS
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    built = CHECKOUT / "dist" / "html"
    index = (built / "index.html").read_text()
    for path in (CHECKOUT / "docs").glob("*.md"):
        assert f'href="{path.stem}.html"' in index
    assert (
        'id="moorage.client.blocking.subscribe"'
        in (built / "api" / "moorage.client.blocking.html").read_text()
    )
    assert "Subscribe" in (built / "man" / "io.moorage.Machine.7.html").read_text()
    # What programs fill in is there.
    assert "--no-ask-password" in (built / "man" / "moorctl.1.html").read_text()
