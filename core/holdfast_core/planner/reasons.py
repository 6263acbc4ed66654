"""Names of causes, conditions and events, as users see them in status, events and metrics."""

# Causes of a new attempt (label `cause` of the recovery metrics)
PROCESS_DIED = "ProcessDied"
PROCESS_FAILED = "ProcessFailed"
CONTAINER_RESTARTED = "ContainerRestarted"
POD_DELETED = "PodDeleted"
POD_FAILED = "PodFailed"
NODE_LOST = "NodeLost"
POD_UNREACHABLE = "PodUnreachable"
HANG = "Hang"
STARTUP_TIMEOUT = "StartupTimeout"
CORRUPT_SNAPSHOT = "CorruptSnapshot"
PREPARE_FAILED = "PrepareFailed"

# Why a job failed for good
RESTART_LIMIT = "RestartLimitExceeded"
NO_PROGRESS = "NoProgress"
CHECKPOINT_UNUSABLE = "CheckpointUnusable"

# Conditions
PODS_READY = "PodsReady"
TRAINING = "Training"
STORES_HEALTHY = "StoresHealthy"
MEMORY_FITS = "MemoryFits"
PROTECTED = "Protected"
SUCCEEDED = "Succeeded"
FAILED = "Failed"

# Events
POD_REPLACED = "PodReplaced"
DRAINING = "Draining"
RESUMING = "Resuming"
RECOVERED = "Recovered"
COMPLETED = "Completed"
JOB_FAILED = "JobFailed"
SOURCE_REJECTED = "SourceRejected"
SNAPSHOT_INTERVAL = "SnapshotInterval"
SPARE_TAKEN = "SpareTaken"
SPARE_LOST = "SpareLost"
NODE_AVOIDED = "NodeAvoided"
NODE_RESTORED = "NodeRestored"
NODES_AVOIDED_IN_VAIN = "NodesAvoidedInVain"
