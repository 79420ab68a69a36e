//! A PKCS#11 module for tests: another module, with faults that a test orders through a file.
//!
//! The environment names the real module (`FAULT_MODULE_REAL`) and the file (`FAULT_MODULE_ORDERS`), which holds one order,
//! `<function> <how often> <fault>`:
//!
//! - how often: `once`, `always`, or `until-finalize`;
//! - fault: a return value in hexadecimal without `0x`; `hang` until the file `<orders>.release` exists; `flip` a bit of the
//!   signature; `final-try`, the flag of a token with one attempt at the PIN left.
//!
//! Every call of a function that can fail on order is added to `<orders>.log`.

#![expect(unsafe_code, reason = "PKCS#11 is a C interface")]

use std::{
    env, fs,
    io::Write as _,
    path::PathBuf,
    ptr, slice,
    sync::{LazyLock, OnceLock},
    thread,
    time::Duration,
};

use cryptoki_sys::{
    CK_BBOOL, CK_BYTE, CK_FUNCTION_LIST, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_TOKEN_INFO,
    CK_ULONG, CK_USER_TYPE, CK_UTF8CHAR, CKF_USER_PIN_FINAL_TRY, CKR_FUNCTION_NOT_SUPPORTED,
    CKR_OK, Pkcs11,
};

/// The entry point of every PKCS#11 module: the real module's functions with ours put over five of them.
///
/// # Safety
/// `list` must be valid for a write, as PKCS#11 says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    static FAULTY: OnceLock<CK_FUNCTION_LIST> = OnceLock::new();
    let Some(real) = &*REAL else { return CKR_FUNCTION_NOT_SUPPORTED };
    let faulty = FAULTY.get_or_init(|| CK_FUNCTION_LIST {
        C_Finalize: Some(finalize),
        C_GetSlotList: Some(get_slot_list),
        C_GetTokenInfo: Some(get_token_info),
        C_Login: Some(login),
        C_Sign: Some(sign),
        ..real.list
    });
    // SAFETY: by the contract of this function. Callers never write through the pointer.
    unsafe { list.write(ptr::from_ref(faulty).cast_mut()) };
    CKR_OK
}

/// The module under the faults, loaded for the life of the process.
struct Real {
    _library: Pkcs11,
    list: CK_FUNCTION_LIST,
}

static REAL: LazyLock<Option<Real>> = LazyLock::new(|| {
    let path = env::var_os("FAULT_MODULE_REAL")?;
    let mut list = ptr::null_mut();
    // SAFETY: the test names a PKCS#11 module, whose entry point gives a list that lives as long as the library.
    unsafe {
        let library = Pkcs11::new(path).ok()?;
        let entry = *library.C_GetFunctionList.as_ref().ok()?;
        (entry(&raw mut list) == CKR_OK).then_some(())?;
        Some(Real { _library: library, list: *list })
    }
});

enum Fault {
    Return(CK_RV),
    Flip,
    FinalTry,
}

fn orders(suffix: &str) -> PathBuf {
    let mut path = env::var_os("FAULT_MODULE_ORDERS").unwrap_or_default();
    path.push(suffix);
    PathBuf::from(path)
}

/// Notes the call, and gives the fault that is ordered for it.
fn fault(function: &str) -> Option<Fault> {
    let mut log = fs::OpenOptions::new().create(true).append(true).open(orders(".log")).ok()?;
    writeln!(log, "{function}").ok()?;
    let order = fs::read_to_string(orders("")).ok()?;
    let mut words = order.split_whitespace();
    if words.next() != Some(function) {
        return None;
    }
    if words.next() == Some("once") {
        fs::remove_file(orders("")).ok()?;
    }
    match words.next()? {
        "flip" => Some(Fault::Flip),
        "final-try" => Some(Fault::FinalTry),
        "hang" => {
            while !orders(".release").exists() {
                thread::park_timeout(Duration::from_millis(5));
            }
            None
        }
        rv => CK_RV::from_str_radix(rv, 16).ok().map(Fault::Return),
    }
}

unsafe extern "C" fn finalize(reserved: *mut std::ffi::c_void) -> CK_RV {
    fault("C_Finalize");
    let order = fs::read_to_string(orders("")).unwrap_or_default();
    if order.contains(" until-finalize ") {
        drop(fs::remove_file(orders("")));
    }
    let Some(real) = REAL.as_ref().and_then(|real| real.list.C_Finalize) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real(reserved) }
}

unsafe extern "C" fn get_slot_list(
    present: CK_BBOOL,
    slots: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    if let Some(Fault::Return(rv)) = fault("C_GetSlotList") {
        return rv;
    }
    let Some(real) = REAL.as_ref().and_then(|real| real.list.C_GetSlotList) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real(present, slots, count) }
}

unsafe extern "C" fn get_token_info(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let fault = fault("C_GetTokenInfo");
    if let Some(Fault::Return(rv)) = fault {
        return rv;
    }
    let Some(real) = REAL.as_ref().and_then(|real| real.list.C_GetTokenInfo) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged; on success `info` was written.
    unsafe {
        let rv = real(slot, info);
        if rv == CKR_OK && matches!(fault, Some(Fault::FinalTry)) {
            (*info).flags |= CKF_USER_PIN_FINAL_TRY;
        }
        rv
    }
}

unsafe extern "C" fn login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    pin_bytes: CK_ULONG,
) -> CK_RV {
    if let Some(Fault::Return(rv)) = fault("C_Login") {
        return rv;
    }
    let Some(real) = REAL.as_ref().and_then(|real| real.list.C_Login) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged.
    unsafe { real(session, user, pin, pin_bytes) }
}

unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    data_bytes: CK_ULONG,
    signature: *mut CK_BYTE,
    signature_bytes: *mut CK_ULONG,
) -> CK_RV {
    // The first call only asks for the length.
    let fault = if signature.is_null() { None } else { fault("C_Sign") };
    let Some(real) = REAL.as_ref().and_then(|real| real.list.C_Sign) else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: the caller's arguments, unchanged; on success `signature` holds that many bytes.
    unsafe {
        let rv = real(session, data, data_bytes, signature, signature_bytes);
        if let Some(Fault::Return(ordered)) = fault {
            // Only now, because a failure ends the operation.
            return ordered;
        }
        if rv == CKR_OK && matches!(fault, Some(Fault::Flip)) {
            let length = usize::try_from(*signature_bytes).unwrap_or_default();
            if let Some(byte) = slice::from_raw_parts_mut(signature, length).first_mut() {
                *byte ^= 1;
            }
        }
        rv
    }
}
