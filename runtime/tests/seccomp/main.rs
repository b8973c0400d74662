//! The system call filter: asked of a BPF machine, and of the kernel.

mod bpf;
mod kernel;
mod verdicts;
