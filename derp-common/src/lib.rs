//! Packet code and map layouts shared by the kernel program and the daemon.
#![cfg_attr(not(test), no_std)]
