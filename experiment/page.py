"""What every page is made of: one template, sections, and charts with their captions."""

from html import escape
from pathlib import Path
from string import Template

TEMPLATE = Path(__file__).with_name("report_template.html")


def whole_page(title, parts, record=None) -> str:
    """A page that needs no network.

    Args:
      title: as plain text.
      parts: of the body, a list of HTML.
      record: what the page is about, for its "date"; None where it has none.
    """
    made = "" if record is None else f" on {record.get('date') or 'an unknown date'}"
    footer = escape(f"Made by Attention Atlas{made}.")
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(parts), footer=footer)


def section(name, title, hint, body) -> str:
    """A section of the page under a title, with a line of explanation where there is one."""
    hint = f'<p class="hint">{hint}</p>' if hint else ""
    return f'<section id="{name}"><h2>{title}</h2>{hint}{body}</section>'


def figure_html(svg, alt, caption) -> str:
    """A chart of the page over its caption, with a text for who cannot see it."""
    return f'<figure><div role="img" aria-label="{escape(alt)}">{svg}</div><figcaption>{caption}</figcaption></figure>'
