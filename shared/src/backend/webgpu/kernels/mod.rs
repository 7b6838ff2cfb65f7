//! One file an operation or a family of them, its kernels beside it: what is checked, and what is dispatched.

mod argmax;
pub(super) mod attention;
mod decode;
mod elements;
pub(super) mod linear;
mod norm;
pub(super) mod shape;
mod top_k;
