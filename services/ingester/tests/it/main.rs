//! Ingesters in one process, over simulated disks, a bucket in memory and a paused clock.

#[cfg(test)]
mod blocks;
#[cfg(test)]
mod carrying;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod deleting;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod histograms;
#[cfg(test)]
mod listing;
#[cfg(test)]
mod metadata;
#[cfg(test)]
mod pinning;
#[cfg(test)]
mod repair;
#[cfg(test)]
mod safety;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod tails;
#[cfg(test)]
mod taking_back;
#[cfg(test)]
mod threads;
