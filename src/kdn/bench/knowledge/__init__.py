"""One library of facts, asked in four ways."""
