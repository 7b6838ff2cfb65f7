//! Picture bytes to pixel values.
