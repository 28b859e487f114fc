"""EDGAR: quarterly indexes, filings fetched and read, their text in items."""
