//! Wire formats and the service traits with local and remote implementations.
