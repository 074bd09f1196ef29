"""HTML as a notebook reads it: refused if it is not well formed."""

from html.parser import HTMLParser

ALLOWED = set("div span b details summary table thead tbody tr th td svg title path".split())


class Parsed(HTMLParser):
    """The texts, tags and attributes of HTML whose tags all close, in order."""

    def __init__(self, html):
        super().__init__()
        self.around, self.texts, self.tags, self.cells = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.around, self.around

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED, tag
        assert not any(name.startswith("on") or name in ("href", "src") for name, _ in attrs)
        self.around.append(tag)
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.around.pop() == tag

    def handle_data(self, data):
        assert self.around
        self.texts.append(data)
        if "td" in self.around and "svg" not in self.around:
            self.cells[-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def rows(self, width):
        """The cells of all rows of tables of this many columns."""
        return [self.cells[i : i + width] for i in range(0, len(self.cells), width)]
