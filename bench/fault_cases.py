"""The rows of the fault matrix: what is put in, which cause is right, what it is compared with."""

from typing import Any

from bench.disturbances import (
    AT,
    Case,
    cancel_by_hand,
    crash,
    cut_newest_checkpoint,
    fail_node,
    fill_disk,
    kill_at_random_moments,
    lose_database,
    lose_manifest,
    move_run,
    restart_controller,
    spoil_newest_checkpoint,
    spoil_utterance,
    take_node,
    take_node_five_times,
)

ON_N4 = "extra: {nodelist: n4}\n"
BELOW = "partition: preempt\nextra: {nodelist: n4}\n"
TWO = {"resources": {"time": "20m", "cpus": 1, "memory_gb": 2, "nodes": 2}}
FOUR = {"resources": {"time": "20m", "cpus": 1, "memory_gb": 2, "nodes": 2, "gpus": 2}}


def fault(name: str, at: int = AT, **more: Any) -> dict[str, Any]:
    return {"fault": name, "at_step": at, **more}


QUIET = (
    Case("one process", "undisturbed"),
    Case("two ranks", "undisturbed, on two nodes", step=TWO, like="two ranks"),
    Case("four ranks", "undisturbed, two on each of two nodes", step=FOUR, like="four ranks"),
    Case(
        "long",
        "undisturbed, 300 steps with a checkpoint every 2",
        training={"max_steps": 300, "checkpoint_every": 2, "valid_every": 150},
        like="long",
    ),
)
CASES = (
    Case("kill", "SIGKILL of the worker", "killed", [fault("kill")]),
    Case("crash", "SIGSEGV of the worker, from outside", "crashed", act=crash),
    Case(
        "kill at 20 moments",
        "SIGKILL at random moments, half of them waiting for a checkpoint being written",
        "killed",
        act=kill_at_random_moments,
        like="long",
        training=QUIET[3].training,
        step={"remedies": {"killed": 5}},
    ),
    Case(
        "kill of one rank of two",
        "SIGKILL of rank 1, which runs on the second node",
        "killed",
        [fault("kill", rank=1)],
        like="two ranks",
        step=TWO,
    ),
    Case(
        "kill of one rank of four",
        "SIGKILL of rank 3 of 4 on two nodes",
        "killed",
        [fault("kill", rank=3)],
        like="four ranks",
        step=FOUR,
    ),
    Case("requeue", "scontrol requeue of its own job", "preempted", [fault("preempt")]),
    Case(
        "preemption",
        "a job of a higher partition takes the node",
        "preempted",
        act=take_node,
        cluster=BELOW,
        alone=True,
    ),
    Case(
        "preemption, five times",
        "a job of a higher partition takes the node, five times in one run",
        "preempted",
        act=take_node_five_times,
        cluster=BELOW,
        training=QUIET[3].training,
        like="long",
        alone=True,
    ),
    Case(
        "node failed",
        "scontrol sets the node down: Slurm requeues with NODE_FAIL",
        "node_failed",
        act=fail_node,
        cluster=ON_N4,
        alone=True,
    ),
    Case("time limit", "SIGUSR2, the warning", "time_limit", [fault("time_limit", rank=None)]),
    Case(
        "time limit, five times",
        "SIGUSR2 at steps 4, 8, 13, 18 and 23",
        "time_limit",
        [fault("time_limit", at, rank=None) for at in (4, 8, 13, 18, 23)],
    ),
    Case(
        "out of GPU memory",
        "torch.OutOfMemoryError in the loop (no GPU on this machine)",
        "out_of_memory_gpu",
        [fault("out_of_memory_gpu")],
    ),
    Case(
        "out of host memory",
        "an allocation of 2^50 bytes, MemoryError",
        "out_of_memory_host",
        [fault("out_of_memory_host")],
    ),
    Case("NaN in a weight", "the first parameter set to NaN", "diverged", [fault("nan_weight")]),
    Case("NaN in a gradient", "one gradient of one step", faults=[fault("nan_gradient")]),
    Case("NaN in a batch", "the samples of one utterance, once", "bad_data", [fault("nan_data")]),
    Case(
        "NaN in a file",
        "a WAV of float32 with NaN, in every epoch",
        "bad_data",
        act=spoil_utterance,
    ),
    Case(
        "NaN in a rank's gradient",
        "rank 1 of 2, three steps",
        faults=[fault("nan_gradient", rank=1, times=3)],
        like="two ranks",
        step=TWO,
    ),
    Case(
        "rate x 1000",
        "for 60 of 300 steps",
        "diverged",
        [fault("rate", 60, times=60)],
        like="long",
        training=QUIET[3].training,
    ),
    Case(
        "disk full",
        "runs on a tmpfs of 1.2 GB, filled to the last byte; a person makes room and resumes",
        "disk_full",
        act=fill_disk,
        like="long",
        training=QUIET[3].training,
        person="made room, resume",
        alone=True,
    ),
    Case("ENOSPC", "/dev/full", "disk_full", [fault("disk_full")], survives=False),
    Case(
        "missing file",
        "opened in the loop",
        "missing_file",
        [fault("missing_file")],
        survives=False,
    ),
    Case("no manifest", "deleted once queued", "missing_file", act=lose_manifest, survives=False),
    Case(
        "import",
        "of a package that is not there",
        "import_error",
        [fault("import_error")],
        survives=False,
    ),
    Case("port in use", "bind() of a port twice", "port_in_use", [fault("port_in_use")]),
    Case("bug", "an IndexError", "error", [fault("bug")], survives=False),
    Case(
        "gate",
        "gate: {wer: <= 0}",
        "gate_missed",
        step={"gate": {"wer": "<= 0.0"}},
        survives=False,
    ),
    Case(
        "scancel",
        "by hand",
        "killed_by_hand",
        act=cancel_by_hand,
        survives=False,
        like="long",
        training=QUIET[3].training,
    ),
    Case(
        "spoiled checkpoint",
        "half of the newest weights zeroed while the job waits in the queue",
        "time_limit",
        [fault("time_limit", rank=None)],
        act=spoil_newest_checkpoint,
    ),
    Case(
        "cut checkpoint",
        "the newest weights cut in half while the job waits in the queue",
        "time_limit",
        [fault("time_limit", rank=None)],
        act=cut_newest_checkpoint,
    ),
    Case(
        "controller restarted",
        "slurmctld killed, away for 10 s",
        act=restart_controller,
        alone=True,
    ),
    Case("database away", "slurmdbd killed until all has ended", act=lose_database, alone=True),
    Case(
        "run moved",
        "its folder renamed while it trains; a person gives it back and resumes",
        "missing_file",
        act=move_run,
        person="gave the folder back, resume",
    ),
)
