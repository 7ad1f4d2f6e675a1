//! The control plane: replicated state machine, log store, watch, partitions and ring.
