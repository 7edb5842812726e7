//! PyTorch's files (`torch.save`): zip archives with a pickle that describes tensors and an entry of plain bytes for
//! each storage, or, as it wrote them until version 1.6, five pickles and the storages one after the other.
//!
//! A pickle is a program; here it is read by an interpreter that can build containers and describe tensors, and nothing
//! else. Whatever it asks for beyond that is refused by name. Nothing is unpacked: entries have to be stored as they
//! are, as PyTorch writes them.

mod archive;
mod machine;

pub use archive::{MAGIC, list, list_old};
