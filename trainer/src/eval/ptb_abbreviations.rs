//! Abbreviations that keep their period, as Stanford's PTBTokenizer 3.4.1 was seen to treat them. Single letters and
//! chains of them (`U.S.`) do so by rule.

/// In any case of letters.
pub const WITH_PERIOD: &str = "\
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt \
    cf cie cmdr co col colo comdr conn cont'd corp cos cpl ct dak dec dept det dr drs ens esq est etc ext feb fla \
    fri ft ga gen gov govs hon inc ind insp intl jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs \
    mich minn mlle mme mo mon mont mr mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt \
    rd rep reps rev rt sen sens sep sept sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs treas tue tues \
    univ va vs vt wed wis wisc wm wyo ph.d ed.d";

/// Only as they stand here: in small letters some are words.
pub const CAPITALISED: &str = "\
    Ark ARK Del DEL Ill ILL La LA Mass MASS mfg Mfg Miss MISS mtg Mtg Ore ORE Pa PA pte Pte ptes Ptes pty Pty ptys \
    Ptys Tex TEX Wash WASH";

/// In any case of letters, but only before a digit.
pub const BEFORE_NUMBERS: &str = "\
    art ca fig figs no nos op pp prop";
