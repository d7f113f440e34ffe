"""How much memory a job may ask for."""

from jobs.backends.slurm.client import call, partitions


def most_memory(partition: str) -> float:
    """GB on one node, at most, in a partition or several with commas; the default one if empty."""
    known = partitions(call("scontrol", "-a", "show", "partition", "-o"))
    default = [name for name, facts in known.items() if facts.get("Default") == "YES"]
    chosen = [name for name in partition.split(",") if name in known] or default
    sizes = (min(_limit(known[name]), _largest_node(name)) for name in chosen)
    return max(sizes, default=0.0) / 1024


def _limit(facts: dict[str, str]) -> float:
    """MaxMemPerNode in MB: a number, or UNLIMITED."""
    said = facts.get("MaxMemPerNode", "")
    return float(said) if said.isdigit() and int(said) else float("inf")


def _largest_node(partition: str) -> float:
    """MB; sinfo prints a line for each size, or `16000+` for several."""
    said = call("sinfo", "-h", "-p", partition, "-o", "%m").split()
    return max((float(word.rstrip("+")) for word in said), default=0.0)
