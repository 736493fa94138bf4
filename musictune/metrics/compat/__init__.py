"""Numbers as other tools give them, their quirks included: one file per tool."""
