"""The data set files that docs/data.md shows for common exports, each on a small export that the test writes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml

from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.datasets import DatasetSpec

_FIRST = 1_514_764_800_000  # the time of the first position where a log has no times
_DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def _documented() -> dict[str, DatasetSpec]:
    text = _DOCS.read_text("utf-8")
    (section,) = re.findall(r"^## Common exports\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)]
    return {block["name"]: DatasetSpec.model_validate(block) for block in blocks}


def _write(data: Path, **files: str) -> None:
    for name, content in files.items():
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def _beauty(data: Path) -> list[tuple[str, str, int]]:
    _write(data, **{"amazon-beauty/Beauty.txt": "u1 A B\nu2 B\n"})
    return [("u1", "A", _FIRST), ("u1", "B", _FIRST + 60_000), ("u2", "B", _FIRST)]


def _letter(data: Path) -> list[tuple[str, str, int]]:
    _write(data, **{"amazon-beauty/Beauty.inter.json": '{"0": [1, 0], "1": [0]}'})
    _write(data, **{"amazon-beauty/Beauty.index.json": '{"0": ["<a_1>"], "1": ["<a_2>"]}'})
    return [("0", "1", _FIRST), ("0", "0", _FIRST + 60_000), ("1", "0", _FIRST)]


def _daily(data: Path) -> list[tuple[str, str, int]]:
    _write(data, **{"shop/catalogue-1.csv": "sku,name\nA,Ball\n", "shop/catalogue-2.csv": "sku,name\nB,Kite\n"})
    for day, item in (("2024-01-01", "A"), ("2024-01-02", "B")):
        (data / f"shop/events/day={day}").mkdir(parents=True)
        frame = pl.DataFrame({"customer": [1], "sku": [item]})
        frame.write_parquet(data / f"shop/events/day={day}/part-0.parquet")
    return [("1", "A", 1_704_067_200_000), ("1", "B", 1_704_153_600_000)]


def _ga4(data: Path) -> list[tuple[str, str, int]]:
    events = [
        {"user_pseudo_id": "12.34", "event_timestamp": "1704103200000000", "items": [{"item_id": "A"}]},
        {"user_pseudo_id": "12.35", "event_timestamp": "1704103260000000", "items": [{"item_id": "B"}]},
    ]
    _write(data, **{"ga4/events-000.json.gz": json.dumps(events[0]) + "\n"})
    _write(data, **{"ga4/events-001.json.gz": json.dumps(events[1]) + "\n"})
    items = [
        {"id": name, "name": name, "description": "x", "brand": {"name": "y"}, "categories": ["z"]} for name in "AB"
    ]
    _write(data, **{"ga4/catalogue.jsonl": "".join(json.dumps(item) + "\n" for item in items)})
    return [("12.34", "A", 1_704_103_200_000), ("12.35", "B", 1_704_103_260_000)]


def _retailrocket(data: Path) -> list[tuple[str, str, int]]:
    log = (
        "timestamp,visitorid,event,itemid,transactionid\n1704103200000,7,view,A,\n1704103200000,7,addtocart,A,\n"
        "1704103260000,8,transaction,B,99\n"
    )
    _write(data, **{"retailrocket/events.csv": log})
    _write(data, **{"retailrocket/catalogue.csv": "itemid,title\nA,Ball\nB,Kite\n"})
    return [("7", "A", 1_704_103_200_000), ("8", "B", 1_704_103_260_000)]


def _shopify(data: Path) -> list[tuple[str, str, int]]:
    products = (
        'Handle,Title,Body (HTML),Vendor,Tags,Image Src\nA,Ball,"<p>Round &amp; soft</p>",Acme,"toy, ball",http://x/1.jpg\n'
        "B,Kite,<p>Flies</p>,Acme,toy,http://x/2.jpg\n"
    )
    _write(data, **{"shopify/products_export.csv": products})
    orders = "Customer,Handle,Created at\n7,A,2024-01-01 10:00:00 +0000\n8,B,2024-01-01 10:01:00 +0000\n"
    _write(data, **{"shopify/orders.csv": orders})
    return [("7", "A", 1_704_103_200_000), ("8", "B", 1_704_103_260_000)]


def _recbole(data: Path) -> list[tuple[str, str, int]]:
    log = (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\tA\t3.0\t1704103200\n8\tB\t4.0\t1704103260.0\n"
    )
    items = (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\nA\tToy Story\t1995\tComedy War\n"
        'B\t"Babe\t1995\t\n'
    )
    _write(data, **{"ml-100k/ml-100k.inter": log, "ml-100k/ml-100k.item": items})
    return [("7", "A", 1_704_103_200_000), ("8", "B", 1_704_103_260_000)]


_TWO_ORDERS = [("7", "A", 1_704_103_200_000), ("8", "B", 1_704_103_260_000)]


def _hm(data: Path) -> list[tuple[str, str, int]]:
    log = "t_dat,customer_id,article_id,price\n2018-09-20,7,0108775015,0.05\n2018-09-20,8,0108775044,0.05\n"
    header = "article_id,prod_name,product_type_name,colour_group_name,detail_desc,index_group_name\n"
    items = (
        "0108775015,Strap top,Vest top,Black,Jersey top,Ladieswear\n0108775044,Strap top,Vest top,White,,Ladieswear\n"
    )
    _write(data, **{"hm/transactions_train.csv": log, "hm/articles.csv": header + items})
    _write(data, **{"hm/images/010/0108775015.jpg": "x"})
    return [("7", "0108775015", 1_537_401_600_000), ("8", "0108775044", 1_537_401_600_000)]


def _woocommerce(data: Path) -> list[tuple[str, str, int]]:
    products = (
        "ID,Type,SKU,Name,Short description,Description,Categories,Images\n"
        '1,simple,A,Ball,<p>Round</p>,,"Toys, Toys > Balls","https://x/1.jpg, https://x/2.jpg"\n'
        "2,simple,B,Kite,,Flies,Toys,\n"
    )
    orders = "Customer,SKU,Date\n7,A,2024-01-01 10:00:00\n8,B,2024-01-01 10:01:00\n"
    _write(data, **{"woocommerce/products.csv": products, "woocommerce/orders.csv": orders})
    return _TWO_ORDERS


def _merchant(data: Path) -> list[tuple[str, str, int]]:
    feed = (
        "id\ttitle\tdescription\tlink\timage_link\tbrand\tproduct_type\n"
        "A\tBall\tRound\thttps://x/a\thttps://x/a.jpg\tAcme\tToys > Balls\n"
        "B\tKite\tFlies\thttps://x/b\thttps://x/b.jpg\tAcme\tToys\n"
    )
    _write(data, **{"merchant/feed.tsv": feed, "merchant/orders.csv": "user,id,time\n7,A,1704103200\n8,B,1704103260\n"})
    return _TWO_ORDERS


def _amazon_parquet(data: Path) -> list[tuple[str, str, int]]:
    for name in ("reviews", "meta"):
        (data / "amazon" / name).mkdir(parents=True)
    for number, (user, item, time) in enumerate(_TWO_ORDERS):
        review = {"user_id": [user], "parent_asin": [item], "timestamp": [time], "rating": [5.0]}
        pl.DataFrame(review).write_parquet(data / f"amazon/reviews/{number:04d}.parquet")
        meta = {"parent_asin": [item], "title": ["Ball"], "features": [["round", "soft"]], "description": [[""]]}
        pl.DataFrame(meta | {"categories": [["Toys"]]}).write_parquet(data / f"amazon/meta/{number:04d}.parquet")
    return _TWO_ORDERS


def _movielens(data: Path) -> list[tuple[str, str, int]]:
    _write(
        data, **{"ml-latest/ratings.csv": "userId,movieId,rating,timestamp\n7,1,4.0,1704103200\n8,2,3.5,1704103260\n"}
    )
    _write(data, **{"ml-latest/movies.csv": "movieId,title,genres\n1,Toy Story (1995),Comedy\n2,Babe,Drama\n"})
    return [("7", "1", 1_704_103_200_000), ("8", "2", 1_704_103_260_000)]


def _mind(data: Path) -> list[tuple[str, str, int]]:
    lines = {
        "train": "1\tU7\t11/11/2019 9:05:58 AM\tN1 N2\tN3-0 N4-1 N1-1\n2\tU8\t11/12/2019 12:00:00 PM\t\tN2-1\n",
        "dev": "3\tU7\t11/15/2019 12:00:00 AM\tN1 N2\tN3-1 N4-0\n",
    }
    news = {
        "train": 'N1\tnews\tnewsus\tA "quoted" title\tAbout\thttps://x\t[]\t[]\nN2\tsports\tgolf\tGolf\t\thttps://x\t[]\t[]\n',
        "dev": "N3\tnews\tnewsus\tThird\t\thttps://x\t[]\t[]\nN4\tnews\tnewsus\tFourth\t\thttps://x\t[]\t[]\n",
    }
    for name in ("train", "dev"):
        folder = f"MINDsmall_{name}"
        _write(data, **{f"{folder}/behaviors.tsv": lines[name], f"{folder}/news.tsv": news[name]})
    first, noon, last = 1_573_463_158_000, 1_573_560_000_000, 1_573_776_000_000
    history = [("U7", "N1", first - 120_000), ("U7", "N2", first - 60_000)]
    return [*history, ("U7", "N4", first), ("U7", "N1", first), ("U8", "N2", noon), ("U7", "N3", last)]


EXPORTS: dict[str, Callable[[Path], list[tuple[str, str, int]]]] = {
    "beauty": _beauty,
    "beauty-letter": _letter,
    "retailrocket": _retailrocket,
    "shopify": _shopify,
    "ml-100k": _recbole,
    "daily": _daily,
    "hm": _hm,
    "woocommerce": _woocommerce,
    "merchant": _merchant,
    "amazon2023-parquet": _amazon_parquet,
    "movielens-latest": _movielens,
    "ga4": _ga4,
    "mind": _mind,
}


def test_every_documented_export_is_tested() -> None:
    """No data set file is shown that has not been read."""
    assert _documented().keys() == EXPORTS.keys()


@pytest.mark.parametrize("name", EXPORTS)
def test_the_documented_file_reads_the_export(name: str, tmp_path: Path) -> None:
    """Validation has no complaint, each interaction is read with its time, and both items have a title."""
    expected = EXPORTS[name](tmp_path)
    spec = _documented()[name]
    assert validate_source(spec, tmp_path) == []
    log = read_raw_interactions(spec, tmp_path).filter(pl.col("problem").is_null())
    assert sorted(log.select("user_id", "item_id", "timestamp").rows()) == sorted(expected)
    items = read_raw_items(spec, tmp_path)
    assert set(items["item_id"]) == {item for _, item, _ in expected}
    assert items["title"].null_count() == 0
