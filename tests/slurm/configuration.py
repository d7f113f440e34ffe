"""Configuration files of the private Slurm; {names} are filled in by its keeper."""

# MessageTimeout, TCPTimeout: the defaults of 10 and 2 s are too short for a loaded machine.
# KillWait: so long may a job save after SIGTERM; tests whose jobs ignore it wait for the kill.
# cred_expire: a requeued job becomes eligible only after the old credential has expired (120 s).
# AccountingStoragePass: the munge socket for talking to slurmdbd; AuthInfo alone leaves it at the
# system-wide socket and slurmdbd refuses every credential.
CONFIGURATION = {
    "slurmdbd.conf": """\
AuthType=auth/munge
AuthInfo=socket={socket}
DbdHost=localhost
DbdPort={dbd_port}
SlurmUser={me}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
LogFile={dir}/log/slurmdbd.log
PidFile={dir}/run/slurmdbd.pid
""",
    "gres.conf": """\
AutoDetect=off
NodeName=n[1-{nodes}] Name=gpu File={dir}/dev/gpu[0-{last_gpu}]
""",
    "slurm.conf": """\
ClusterName=mini
FirstJobId={first_job}
SlurmctldHost=localhost
SlurmctldPort={ctld_port}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=5
CredType=cred/munge
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=15
MessageTimeout=50
TCPTimeout=20
OverTimeLimit=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={dbd_port}
AccountingStoragePass={socket}
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports}] \\
    CPUs=8 RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=preempt Nodes=n[1-{nodes}] MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=short Nodes=n[1-{nodes}] MaxTime=2 State=UP PriorityTier=10
""",
}
