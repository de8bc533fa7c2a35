/* monitor_cri.c: the log's line format, the one of the Kubernetes container runtime interface:
 *
 *   2026-11-20T20:28:01.123456789Z stdout F a whole line
 *   2026-11-20T20:28:01.123456789Z stdout P a piece of a line that goes on in the next record
 *
 * Pure functions on buffers, so that they are tested and fuzzed apart from the monitor. */
#include "monitor.h"

/* Days since 1970-01-01 to a date of the proleptic Gregorian calendar; a year begins in March
 * here, so that the leap day is its last. */
static void civil(uint64_t days, uint32_t *ret_year, uint32_t *ret_month, uint32_t *ret_day) {
    uint64_t z = days + 719468; /* from 0000-03-01 */
    uint64_t era = z / 146097, of_era = z % 146097;
    uint64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint64_t of_year = of_era - (365 * year + year / 4 - year / 100);
    uint64_t month = (5 * of_year + 2) / 153;
    *ret_day = (uint32_t)(of_year - (153 * month + 2) / 5 + 1);
    *ret_month = (uint32_t)(month < 10 ? month + 3 : month - 9);
    *ret_year = (uint32_t)(year + era * 400 + (*ret_month <= 2));
}

/* Writes "TIME STREAM " and returns its length, at most CRI_PREFIX_BYTES. */
uint32_t cri_prefix(char *at, uint64_t sec, uint32_t nsec, const char *stream) {
    uint32_t year, month, day;
    char *p = at;
    civil(sec / 86400, &year, &month, &day);
    p = pyc_put_decimal(p, year, 4);
    *p++ = '-';
    p = pyc_put_decimal(p, month, 2);
    *p++ = '-';
    p = pyc_put_decimal(p, day, 2);
    *p++ = 'T';
    p = pyc_put_decimal(p, sec / 3600 % 24, 2);
    *p++ = ':';
    p = pyc_put_decimal(p, sec / 60 % 60, 2);
    *p++ = ':';
    p = pyc_put_decimal(p, sec % 60, 2);
    *p++ = '.';
    p = pyc_put_decimal(p, nsec, 9);
    p = pyc_put_text(p, "Z ");
    p = pyc_put_text(p, stream);
    *p++ = ' ';
    return (uint32_t)(p - at);
}

/* Formats as many records of `raw` as fit into `out`; `ret_used` is how much of `raw` they hold.
 * What has no newline, or more than CRI_SEGMENT_BYTES before it, becomes a piece ("P"). A caller
 * that gives room for one segment always makes progress. Returns the bytes written. */
uint32_t cri_lines(const uint8_t *raw, uint32_t raw_bytes, uint32_t *ret_used, const char *prefix,
                   uint32_t prefix_bytes, uint8_t *out, uint32_t out_bytes) {
    uint32_t used = 0, made = 0;
    while (used < raw_bytes) {
        uint32_t left = raw_bytes - used, length = 0;
        uint32_t most = left < CRI_SEGMENT_BYTES ? left : CRI_SEGMENT_BYTES;
        while (length < most && raw[used + length] != '\n')
            length++;
        bool whole = length < left && raw[used + length] == '\n';
        if (out_bytes - made < prefix_bytes + length + 3)
            break;
        memcpy(out + made, prefix, prefix_bytes);
        made += prefix_bytes;
        out[made++] = whole ? 'F' : 'P';
        out[made++] = ' ';
        memcpy(out + made, raw + used, length);
        made += length;
        out[made++] = '\n';
        used += length + whole;
    }
    *ret_used = used;
    return made;
}
