"""The page's own statements: one file of sql/ each, beside those of the store."""

from typing import Any

from notifyworker.data import folder
from notifyworker.database import Queryable
from notifyworker.migrate import render
from notifyworker.store import Row


class Queries:
    """The statements of one installation."""

    def __init__(self, schema: str) -> None:
        self._sql = {
            file.name[:-4]: render(file.read_text(encoding="utf-8"), schema)
            for file in folder("http/page/sql").iterdir()
            if file.name.endswith(".sql")
        }

    async def rows(self, on: Queryable, name: str, *arguments: Any) -> list[Row]:
        """Execute one of them and return all rows. Raises DatabaseError."""
        return await on.fetch(self._sql[name], *arguments)

    async def row(self, on: Queryable, name: str, *arguments: Any) -> Row | None:
        """The first row, if there is one. Raises DatabaseError."""
        found = await self.rows(on, name, *arguments)
        return found[0] if found else None
