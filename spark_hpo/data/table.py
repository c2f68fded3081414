"""A prepared table: its schema and the manifests of its splits, read once on the driver."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_hpo.data import files
from spark_hpo.data.manifest import Manifest, read_manifest
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import DataError
from spark_hpo.trial import Split

SCHEMA_FILE = "schema.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A prepared table as the driver found it. It is shipped to every rank, which lists nothing itself."""

    url: str
    schema: TableSchema
    manifests: Mapping[Split, Manifest]

    def manifest(self, split: Split) -> Manifest:
        return self.manifests[split]

    @property
    def fingerprint(self) -> str:
        """Changes when any file of any split, or the schema, does."""
        facts = [self.schema.to_json(), *(self.manifests[split].fingerprint for split in Split)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "schema": self.schema.to_json(),
            "manifests": {str(split): manifest.to_json() for split, manifest in self.manifests.items()},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Table:
        return cls(
            url=record["url"],
            schema=TableSchema.from_json(record["schema"]),
            manifests={Split(name): Manifest.from_json(m) for name, m in record["manifests"].items()},
        )


def open_table(url: str) -> Table:
    """Read `schema.json` and the footers of train, validation and test.

    Args:
        url: the folder that `jobs/prepare_data.py` wrote, as a local path or any fsspec URL.

    Raises:
        DataError: there is no table, it has no `schema.json`, or a split is not what the schema says.
    """
    url = files.absolute(url)
    schema = _read_schema(url)
    return Table(
        url=url,
        schema=schema,
        manifests={split: read_manifest(files.join(url, split), schema) for split in Split},
    )


def _read_schema(url: str) -> TableSchema:
    place = files.join(url, SCHEMA_FILE)
    fs, path = files.filesystem(place)
    try:
        record = json.loads(fs.cat_file(path))
        return TableSchema.from_json(record)
    except FileNotFoundError:
        exists = fs.exists(fs._parent(path))
        fault = f"has no {SCHEMA_FILE}" if exists else "does not exist"
        raise DataError(
            f"{url}: the table {fault}: make it with "
            f"`jobs/prepare_data.py csv --input <your table> --label <column> --output {url}`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataError(f"{place}: not a schema ({exc!r}): prepare the table again") from exc
    except OSError as exc:
        raise DataError(f"{place}: cannot be read: {exc}") from exc
