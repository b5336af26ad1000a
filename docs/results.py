"""Results of the node with pandas and DuckDB: pip install pandas duckdb 'pacs-node[parquet]'.

    pacs-node results --all --deidentify --key study.key --format parquet --out results.parquet
    pacs-node studies --deidentify --key study.key --format parquet --out studies.parquet
    pacs-node scores --deidentify --key study.key --format parquet --out scores.parquet
    python docs/results.py FOLDER

FOLDER holds these three files.
"""

import sys
from pathlib import Path

import duckdb
import pandas as pd


def answers_per_month(folder: Path) -> pd.DataFrame:
    """Count the answers on studies: DuckDB reads the file itself, and gives a data frame."""
    return duckdb.sql(
        f"""
        SELECT substr(study_date, 1, 6) AS month, coalesce(decision, 'no report') AS answer,
               count(*) AS studies,
               round(quantile_cont(seconds_to_delivery, 0.5), 1) AS median_seconds
        FROM '{folder / "studies.parquet"}'
        GROUP BY ALL ORDER BY ALL
        """
    ).df()


def by_age(folder: Path) -> pd.DataFrame:
    """Return how many images of each age group were scored, and how many are positive."""
    images = pd.read_parquet(folder / "results.parquet")
    groups = pd.cut(images["age"], [0, 1, 6, 18, 65, 200], right=False).cat.add_categories("unknown")
    images["group"] = groups.fillna("unknown").astype(str)
    images["is_positive"] = images["decision"].eq("positive")
    return images.groupby("group").agg(
        images=("decision", "size"), scored=("probability", "count"), positive=("is_positive", "sum")
    )


def agreement(folder: Path) -> pd.DataFrame:
    """Return how often the model of the reports (rows) and each other model (columns) decided what."""
    scores = pd.read_parquet(folder / "scores.parquet")
    scores = scores[scores["is_replaced"] == 0]
    scores["model"] = scores[["model_name", "model_version"]].agg(" ".join, axis=1)
    ours, others = scores[scores["is_newest"] == 1], scores[scores["is_rescore"] == 1]
    pairs = ours.merge(others, on="sop_instance_uid", suffixes=("", "_other"))
    return pd.crosstab(pairs["decision"], [pairs["model_other"], pairs["decision_other"]])


def main() -> None:
    """Print the three tables."""
    folder = Path(sys.argv[1])
    for table in (answers_per_month(folder), by_age(folder), agreement(folder)):
        print(table.to_string(), end="\n\n")  # noqa: T201


if __name__ == "__main__":
    main()
