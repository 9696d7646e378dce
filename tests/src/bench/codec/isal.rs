//! Intel's ISA-L, if the machine has it (Debian: libisal2): the fastest erasure code in common use, loaded while the
//! benchmark runs, so that nothing needs it to build.
#![expect(unsafe_code, reason = "functions of a C library")]

use std::ffi::{CStr, c_int, c_uchar, c_void};

/// Bytes of its tables for one coefficient.
const TABLE_LEN: usize = 32;

type InitTables = unsafe extern "C" fn(c_int, c_int, *const c_uchar, *mut c_uchar);
type EncodeData = unsafe extern "C" fn(c_int, c_int, c_int, *const c_uchar, *const *const c_uchar, *const *mut c_uchar);

/// The library, loaded for good.
#[derive(Clone, Copy)]
pub(super) struct Isal {
    init_tables: InitTables,
    best: EncodeData,
    avx2: Option<EncodeData>,
}

/// Sums of products of k inputs, as [`Isal`] prepares them.
pub(super) struct Sums {
    encode: EncodeData,
    k: usize,
    rows: usize,
    tables: Vec<u8>,
}

impl Isal {
    /// Loads it, if it is there.
    pub(super) fn load() -> Option<Isal> {
        // SAFETY: a plain C library, whose loading runs nothing but the C library's own set-up.
        let library = unsafe { libc::dlopen(c"libisal.so.2".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return None;
        }
        let init_tables = symbol(library, c"ec_init_tables")?;
        let best = symbol(library, c"ec_encode_data")?;
        let avx2 = symbol(library, c"ec_encode_data_avx2").filter(|_| has_avx2());
        // SAFETY: these are the types of erasure_code.h, without the `const` that it leaves out.
        unsafe {
            Some(Isal {
                init_tables: std::mem::transmute::<*mut c_void, InitTables>(init_tables),
                best: std::mem::transmute::<*mut c_void, EncodeData>(best),
                avx2: avx2.map(|avx2| std::mem::transmute::<*mut c_void, EncodeData>(avx2)),
            })
        }
    }

    /// Prepares `rows` of k coefficients each, one after the other, for the best instructions that it knows here.
    pub(super) fn best(self, k: usize, rows: &[u8]) -> Sums {
        self.sums(self.best, k, rows)
    }

    /// The same for AVX2, if the machine has that.
    pub(super) fn avx2(self, k: usize, rows: &[u8]) -> Option<Sums> {
        Some(self.sums(self.avx2?, k, rows))
    }

    fn sums(self, encode: EncodeData, k: usize, coefficients: &[u8]) -> Sums {
        let rows = coefficients.len() / k;
        let mut tables = vec![0; TABLE_LEN * k * rows];
        // SAFETY: it reads k * rows coefficients and writes 32 bytes for each.
        unsafe { (self.init_tables)(k as c_int, rows as c_int, coefficients.as_ptr(), tables.as_mut_ptr()) };
        Sums { encode, k, rows, tables }
    }
}

impl Sums {
    /// Writes the sums of the inputs over the outputs. All have equal length.
    pub(super) fn combine(&self, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let len = inputs.first().map_or(0, |input| input.len());
        assert!(inputs.len() == self.k && inputs.iter().all(|input| input.len() == len));
        assert!(outputs.len() == self.rows && outputs.iter().all(|output| output.len() == len));
        let sources: Vec<*const u8> = inputs.iter().map(|input| input.as_ptr()).collect();
        let targets: Vec<*mut u8> = outputs.iter_mut().map(|output| output.as_mut_ptr()).collect();
        // SAFETY: k inputs and `rows` outputs of `len` bytes, as was looked at, and tables that were made for as many.
        unsafe {
            (self.encode)(
                len as c_int,
                self.k as c_int,
                self.rows as c_int,
                self.tables.as_ptr(),
                sources.as_ptr(),
                targets.as_ptr(),
            );
        }
    }
}

fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a library that was loaded, and the name of a symbol.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}
