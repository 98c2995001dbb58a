//! What the kernel offers and rustix does not: one safe function per operation. The only unsafe code.
