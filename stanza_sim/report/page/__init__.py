"""One self-contained page of a result: `report.html`, from which no request leaves."""

from stanza_sim.report.page.build import page_html, write_page

__all__ = ["page_html", "write_page"]
