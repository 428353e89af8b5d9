"""A panel for Flask-DebugToolbar: where the request has read, and why.

``DEBUG_TB_PANELS`` names it; nothing else imports this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask_debugtoolbar.panels import DebugPanel

from flask_replicated.routing.state import current_app_state

if TYPE_CHECKING:
    from flask_replicated.routing.explanations import Explanation

__all__ = ["ReplicasPanel"]

_TABLE = """
<table>
  <thead><tr><th>Bind</th><th>Server</th><th>Because</th></tr></thead>
  <tbody>
  {% for read in reads %}
    <tr class="{{ loop.cycle('flDebugOdd', 'flDebugEven') }}">
      <td>{{ read.bind or '(default)' }}</td>
      <td>{{ read.replica or 'primary' }}</td>
      <td>{{ read.reason }}</td>
    </tr>
  {% else %}
    <tr><td colspan="3">This request has not read.</td></tr>
  {% endfor %}
  </tbody>
</table>
"""


class ReplicasPanel(DebugPanel):
    """Shows each read of the request, the oldest first."""

    name = "Replicas"
    has_content = True

    def nav_title(self) -> str:
        """Return what the toolbar calls it."""
        return "Replicas"

    def nav_subtitle(self) -> str:
        """Return the servers that have been read from."""
        names = dict.fromkeys(read.replica or "primary" for read in _reads())
        return ", ".join(names) or "no reads"

    def title(self) -> str:
        """Return the heading."""
        return "Where this request has read, and why"

    def url(self) -> str:
        """Return no address: there is nothing to load."""
        return ""

    def content(self) -> str:
        """Return a table of the reads; the toolbar's environment escapes them."""
        return self.jinja_env.from_string(_TABLE).render(reads=_reads())


def _reads() -> list[Explanation]:
    state = current_app_state()
    return [] if state is None else state.explanation()
