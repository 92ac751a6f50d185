"""Forms with files (RFC 7578), as OpenAI's clients upload them. The whole body is in memory."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser

from kdn.serve.errors import Refused

__all__ = ["FormPart", "read_form"]

_MAX_PARTS = 32
_MAX_HEAD_BYTES = 8192


@dataclass(frozen=True)
class FormPart:
    """One field of a form."""

    content: bytes
    filename: str | None = None
    """None: a plain value."""

    @property
    def text(self) -> str:
        """A plain value. Raises Refused for what is not UTF-8."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise Refused("a field of the form is not UTF-8 text") from error


def read_form(content_type: str, body: bytes) -> dict[str, FormPart]:
    """The fields by name; of two that share one the last. Raises Refused for what is no form."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise Refused(
            "send the file as multipart/form-data with a boundary, as OpenAI's clients do"
        )
    between = b"\r\n--" + boundary.encode("ascii", "replace")
    # The first delimiter has no line end of its own when it begins the body.
    pieces = (b"\r\n" + body).split(between, _MAX_PARTS + 2)
    if len(pieces) > _MAX_PARTS + 2:
        raise Refused(f"the form has more than {_MAX_PARTS} fields")
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise Refused("the form ends before its last boundary: send it whole")
    found: dict[str, FormPart] = {}
    for piece in pieces[1:-1]:
        name, part = _part(piece)
        found[name] = part
    return found


def _part(piece: bytes) -> tuple[str, FormPart]:
    head, blank, content = piece.partition(b"\r\n\r\n")
    if not blank or len(head) > _MAX_HEAD_BYTES:  # the library takes quadratic time for a long one
        raise Refused(
            f"a part of the form does not begin with a head of up to {_MAX_HEAD_BYTES} bytes"
        )
    fields = HeaderParser().parsestr(head.lstrip(b" \t\r\n").decode("utf-8", "replace"))
    name = fields.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise Refused("a part of the form has no name: write content-disposition with a name")
    return name, FormPart(content, fields.get_filename())
