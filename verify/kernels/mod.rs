//! What the program says of its kernels without running them: it reads the assembler and the disassembler rightly, and
//! refuses everything that was not agreed.

mod budget;
mod command;
mod counted;
mod gpu_run;
mod readers;
mod roofline;
