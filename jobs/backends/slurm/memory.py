"""How much memory a job may ask for."""

from collections.abc import Iterator

from jobs.backends.slurm.client import call


def most_memory(partition: str) -> float:
    """GB on one node, at most, in a partition or several with commas; the default one if empty."""
    wanted = partition.split(",") if partition else []
    found = [
        min(limit, _largest_node(facts["PartitionName"]))
        for facts in _partitions()
        for limit in [_megabytes(facts.get("MaxMemPerNode", ""))]
        if (facts["PartitionName"] in wanted if wanted else facts.get("Default") == "YES")
    ]
    return max(found, default=0.0) / 1024


def _partitions() -> Iterator[dict[str, str]]:
    for line in call("scontrol", "-a", "show", "partition", "-o").splitlines():
        facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in facts:
            yield facts


def _largest_node(partition: str) -> float:
    said = call("sinfo", "-h", "-p", partition, "-o", "%m").split()
    return max((float(word.rstrip("+")) for word in said), default=0.0)


def _megabytes(limit: str) -> float:
    return float(limit) if limit.isdigit() and int(limit) else float("inf")
