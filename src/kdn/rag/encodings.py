"""The encodings that HTML declares, by the names that the WHATWG gives them.

Encoding Standard, section 4.2: a label names what browsers decode, not what the label says. A page
that declares ISO-8859-1 is read as windows-1252, for pages made on Windows say so.
"""

from __future__ import annotations

import codecs
import re

__all__ = ["declared_encoding", "decode_declared", "hides_in_ascii"]

_LATIN = """ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1
    iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252 x-user-defined"""
_TURKISH = """cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9
    iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254"""
_CHINESE = (
    """chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030"""
)
_JAPANESE = "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis"
_KOREAN = """cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601
    ksc_5601 windows-949"""
_OTHERS = {
    "big5-hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "iso-8859-8": "iso-8859-8-i logical csiso88598i",
    "koi8-u": "koi8-ru koi8-u",
    # A page whose declaration can be read byte by byte is not in UTF-16, whatever it declares.
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 utf-16 utf-16le utf-16be unicode csunicode ucs-2",
}
_CODECS = {
    label: codec
    for codec, labels in {
        "cp1252": _LATIN,
        "cp1254": _TURKISH,
        "gb18030": _CHINESE,
        "cp932": _JAPANESE,
        "cp949": _KOREAN,
        **_OTHERS,
    }.items()
    for label in labels.split()
}
_SEVEN_BITS = {"iso-2022-jp", "csiso2022jp"}
"""Text in these is valid UTF-8 and means something else there."""
_HEAD_BYTES = 4096
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_META = re.compile(rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML = re.compile(rb"\A\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE)
_KEPT_BYTES = {0xDC00 + byte: byte for byte in range(0x80, 0x100)}


def declared_encoding(data: bytes) -> str | None:
    """The label that a page declares in its first 4,096 bytes, in lower case."""
    head = _COMMENT.sub(b"", data[:_HEAD_BYTES])
    found = _META.search(head) or _XML.search(head)
    return found.group(1).decode("ascii", "replace").lower() if found else None


def hides_in_ascii(label: str | None) -> bool:
    """Must this label be believed even where the data could be UTF-8?"""
    return label in _SEVEN_BITS


def decode_declared(data: bytes, label: str) -> str:
    """Text by a declared label. Raises LookupError for no known one, UnicodeDecodeError for a wrong one."""
    codec = codecs.lookup(_CODECS.get(label, label)).name
    if not codec.startswith("cp125") and codec != "cp874":
        return data.decode(codec)
    # The few bytes that these leave open stand for control characters of the same number.
    return data.decode(codec, "surrogateescape").translate(_KEPT_BYTES)
