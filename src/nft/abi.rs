//! Numbers of the kernel's interface, from `include/uapi/linux/netfilter/nf_tables.h`
//! and `include/uapi/linux/netfilter/nfnetlink.h`, and the few of nft's own that it keeps in
//! the kernel for its listing. Names are theirs, without the prefix.

/// `NFNL_SUBSYS_NFTABLES`.
pub const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: the family of our table.
pub const FAMILY_INET: u8 = 1;
/// `NFNL_MSG_BATCH_BEGIN`.
pub const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
pub const BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`: commit only if the rules' generation is still this (since 4.10).
pub const BATCH_GENERATION: u16 = 1;

/// `NFT_MSG_*`.
pub mod message {
    use super::SUBSYSTEM;

    const fn kind(number: u16) -> u16 {
        SUBSYSTEM << 8 | number
    }
    pub const NEW_TABLE: u16 = kind(0);
    pub const GET_TABLE: u16 = kind(1);
    pub const DELETE_TABLE: u16 = kind(2);
    pub const NEW_CHAIN: u16 = kind(3);
    pub const GET_CHAIN: u16 = kind(4);
    pub const DELETE_CHAIN: u16 = kind(5);
    pub const NEW_RULE: u16 = kind(6);
    pub const GET_RULE: u16 = kind(7);
    pub const DELETE_RULE: u16 = kind(8);
    pub const NEW_SET: u16 = kind(9);
    pub const GET_SET: u16 = kind(10);
    pub const DELETE_SET: u16 = kind(11);
    pub const NEW_ELEMENTS: u16 = kind(12);
    pub const GET_ELEMENTS: u16 = kind(13);
    pub const DELETE_ELEMENTS: u16 = kind(14);
    pub const GET_GENERATION: u16 = kind(16);
    pub const GET_OBJECT: u16 = kind(19);
    pub const GET_FLOWTABLE: u16 = kind(23);
}

/// `NFTA_TABLE_*`.
pub mod table {
    pub const NAME: u16 = 1;
    pub const FLAGS: u16 = 2;
    pub const USE: u16 = 3;
    /// From Linux 5.10; older kernels take no notice.
    pub const USERDATA: u16 = 6;
    /// Our own type, far from those of libnftnl (`NFTNL_UDATA_TABLE_*`), which skips what
    /// it does not know.
    pub const USERDATA_BIRTHMARK: u8 = 0x72;
}

/// `NFTA_CHAIN_*` and `NFTA_HOOK_*`.
pub mod chain {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 3;
    pub const HOOK: u16 = 4;
    pub const POLICY: u16 = 5;
    pub const TYPE: u16 = 7;
    pub const FLAGS: u16 = 10;
    pub const HOOK_NUMBER: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    /// `NFT_CHAIN_BINDING`: a nameless chain within a rule.
    pub const FLAG_BINDING: u32 = 4;
}

/// `NFTA_RULE_*`.
pub mod rule {
    pub const TABLE: u16 = 1;
    pub const CHAIN: u16 = 2;
    pub const EXPRESSIONS: u16 = 4;
    pub const USERDATA: u16 = 7;
    /// `NFTNL_UDATA_RULE_COMMENT`, libnftnl's `include/libnftnl/udata.h`.
    pub const USERDATA_COMMENT: u8 = 0;
}

/// `NFTA_SET_*`.
pub mod set {
    pub const TABLE: u16 = 1;
    pub const NAME: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const KEY_TYPE: u16 = 4;
    pub const KEY_LENGTH: u16 = 5;
    pub const DATA_TYPE: u16 = 6;
    pub const DATA_LENGTH: u16 = 7;
    pub const POLICY: u16 = 8;
    pub const DESCRIPTION: u16 = 9;
    pub const ID: u16 = 10;
    pub const TIMEOUT: u16 = 11;
    pub const USERDATA: u16 = 13;
    pub const OBJECT_TYPE: u16 = 15;
    pub const EXPRESSION: u16 = 17;
    pub const EXPRESSIONS: u16 = 18;
    /// `NFTA_SET_DESC_SIZE`.
    pub const DESCRIPTION_SIZE: u16 = 1;

    /// `NFT_SET_ANONYMOUS`, and so on.
    pub const FLAG_ANONYMOUS: u32 = 1;
    pub const FLAG_CONSTANT: u32 = 2;
    pub const FLAG_INTERVAL: u32 = 4;
    pub const FLAG_MAP: u32 = 8;
    /// `NFT_DATA_VERDICT`.
    pub const DATA_VERDICT: u32 = 0xffff_ff00;

    /// nft's type numbers (`enum datatypes`, nftables' `include/datatype.h`).
    pub const TYPE_IPV4: u32 = 7;
    pub const TYPE_IPV6: u32 = 8;
    pub const TYPE_ETHER: u32 = 9;
    pub const TYPE_SERVICE: u32 = 13;
    pub const TYPE_MARK: u32 = 19;
    pub const TYPE_IFNAME: u32 = 41;
}

/// `NFTA_SET_ELEM_LIST_*`, `NFTA_SET_ELEM_*`, `NFTA_DATA_*`, `NFTA_VERDICT_*`.
pub mod element {
    pub const LIST_SET: u16 = 2;
    pub const LIST_ELEMENTS: u16 = 3;
    pub const LIST_SET_ID: u16 = 4;
    /// `NFTA_LIST_ELEM`, also of expressions.
    pub const LIST_ELEMENT: u16 = 1;
    pub const KEY: u16 = 1;
    pub const DATA: u16 = 2;
    pub const FLAGS: u16 = 3;
    pub const USERDATA: u16 = 6;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    pub const FLAG_INTERVAL_END: u32 = 1;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
}

/// `NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`, as sent.
pub mod verdict {
    pub const DROP: u32 = 0;
    pub const ACCEPT: u32 = 1;
    pub const JUMP: u32 = 0xffff_fffd;
    pub const GOTO: u32 = 0xffff_fffc;
    pub const RETURN: u32 = 0xffff_fffb;
}

/// `NFTA_EXPR_*` and the attributes of each expression that we know.
pub mod expression {
    pub const NAME: u16 = 1;
    pub const DATA: u16 = 2;
    /// `NFT_REG_VERDICT` and `NFT_REG_1`.
    pub const REGISTER_VERDICT: u32 = 0;
    pub const REGISTER_1: u32 = 1;

    pub const META_DESTINATION: u16 = 1;
    pub const META_KEY: u16 = 2;
    pub const META_SOURCE: u16 = 3;

    pub const CT_DESTINATION: u16 = 1;
    pub const CT_KEY: u16 = 2;
    pub const CT_SOURCE: u16 = 4;

    pub const PAYLOAD_DESTINATION: u16 = 1;
    pub const PAYLOAD_BASE: u16 = 2;
    pub const PAYLOAD_OFFSET: u16 = 3;
    pub const PAYLOAD_LENGTH: u16 = 4;

    pub const BITWISE_SOURCE: u16 = 1;
    pub const BITWISE_DESTINATION: u16 = 2;
    pub const BITWISE_LENGTH: u16 = 3;
    pub const BITWISE_MASK: u16 = 4;
    pub const BITWISE_XOR: u16 = 5;
    /// Since 5.6; 0 is mask and xor, the only one before.
    pub const BITWISE_OPERATION: u16 = 6;

    pub const COMPARE_SOURCE: u16 = 1;
    pub const COMPARE_OPERATION: u16 = 2;
    pub const COMPARE_DATA: u16 = 3;
    pub const COMPARE_EQUAL: u32 = 0;
    pub const COMPARE_NOT_EQUAL: u32 = 1;

    pub const LOOKUP_SET: u16 = 1;
    pub const LOOKUP_SOURCE: u16 = 2;
    pub const LOOKUP_DESTINATION: u16 = 3;
    pub const LOOKUP_SET_ID: u16 = 4;
    pub const LOOKUP_FLAGS: u16 = 5;
    pub const LOOKUP_INVERT: u32 = 1;

    pub const COUNTER_BYTES: u16 = 1;
    pub const COUNTER_PACKETS: u16 = 2;

    pub const REJECT_TYPE: u16 = 1;
    pub const REJECT_CODE: u16 = 2;
    /// `NFT_REJECT_ICMPX_UNREACH` and `NFT_REJECT_ICMPX_ADMIN_PROHIBITED`.
    pub const REJECT_ICMPX: u32 = 2;
    pub const REJECT_PROHIBITED: u8 = 3;

    pub const IMMEDIATE_DESTINATION: u16 = 1;
    pub const IMMEDIATE_DATA: u16 = 2;
}

/// `NFTA_GEN_*`.
pub mod generation {
    pub const ID: u16 = 1;
}
