"""kdn inside other frameworks: one file each, loaded only when its framework is used."""
