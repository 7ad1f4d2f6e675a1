//! Clock, randomness, disk, network, CPU and tasks: the only place that touches the real ones.
