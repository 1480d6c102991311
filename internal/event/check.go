package event

import (
	"crypto/subtle"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"auditsink/hashing"
)

const (
	maxAhead         = 24 * time.Hour // how far an event may lie ahead of its record, and that of the clock
	maxRetentionDays = 36_500
)

// The defaults of columns, and the classifications as stored.
var (
	defaultVersion   = []byte("1.0")
	defaultRetention = []byte("standard")
	internal         = []byte("INTERNAL")
	classifications  = [...][]byte{[]byte("PUBLIC"), internal, []byte("CONFIDENTIAL"), []byte("PHI")}
)

// checkFields checks each known member by itself, and fills the texts, and of the row what is not a text.
// reference is the instant that the timestamp is held against, in microseconds.
func (d *Decoder) checkFields(reference int64) {
	d.texts = [fieldCount][]byte{}
	d.decoded = shrink(d.decoded, keepBytes)[:0]
	d.row.DataClassification = internal
	d.row.Latency = 0
	d.row.ArchivedAt, d.row.HasArchivedAt = 0, false
	for f := timestamp; f < fieldCount; f++ {
		if f == signature && d.signer == nil {
			continue
		}
		m := &d.scanner.members[f]
		if m.end == 0 {
			if f == timestamp || f == action || f == status {
				d.fault(MissingField, f, "is missing; every event needs it")
			}
			continue
		}
		d.checkField(f, m, reference)
	}
}

// checkField checks a member that is there.
func (d *Decoder) checkField(f field, m *member, reference int64) {
	raw := d.scanner.text[m.start:m.end]
	first := raw[0]
	isNumber := first == '-' || isDigit(first)
	switch {
	case f == processingLatency:
		if !isNumber {
			d.fault(InvalidType, f, "is not a number; send the milliseconds as one")
			return
		}
		d.checkLatency(raw)
		return
	case f == retentionPolicy && isNumber:
		d.checkRetentionDays(raw)
		return
	case first != '"' && f == retentionPolicy:
		d.fault(InvalidType, f, "is neither a string nor a number; send a policy's name or a number of days")
		return
	case first != '"':
		d.fault(InvalidType, f, "is not a string; send it as one")
		return
	}
	text := raw[1 : len(raw)-1]
	if m.escaped {
		before := len(d.decoded)
		d.decoded = appendUnescaped(d.decoded, text)
		text = d.decoded[before:len(d.decoded):len(d.decoded)]
	}
	d.texts[f] = text
	if limit := maxLengths[f]; limit > 0 && len(text) > limit {
		if length := utf8.RuneCount(text); length > limit {
			d.fault(TooLong, f, "has "+strconv.Itoa(length)+" characters; send "+strconv.Itoa(limit)+" at most")
		}
	}
	d.checkText(f, text, reference)
}

// checkText checks the text of a member that is a string, beyond its length.
func (d *Decoder) checkText(f field, text []byte, reference int64) {
	var ok bool
	switch f {
	case timestamp:
		if d.row.Timestamp, ok = parseTimestamp(text); !ok {
			d.fault(InvalidTimestamp, f, "is not an RFC 3339 date and time; send the like of YYYY-MM-DDTHH:MM:SS.mmmZ")
			return
		}
		if d.row.Timestamp < reference-d.rules.Horizon.Microseconds() {
			d.fault(TimestampOutOfRange, f, "is further back than the retention horizon; check the producer's clock")
		} else if d.row.Timestamp > reference+maxAhead.Microseconds() {
			d.fault(TimestampOutOfRange, f, "is over a day after its record's; check the producer's clock")
		}
	case archivedAt:
		if d.row.ArchivedAt, ok = parseTimestamp(text); !ok {
			d.fault(InvalidTimestamp, f, "is not an RFC 3339 date and time; send the like of YYYY-MM-DDTHH:MM:SS.mmmZ")
		}
		d.row.HasArchivedAt = ok
	case action:
		if len(text) == 0 {
			d.fault(InvalidValue, f, "is empty; name the action")
		}
	case status:
		if s := string(text); s != "attempt" && s != "success" && s != "failure" {
			d.fault(InvalidValue, f, "is none of attempt, success and failure; send one of them")
		}
	case hash:
		if !isHash(text) {
			d.fault(InvalidValue, f, "is not 64 hex digits; send a SHA-256 as those, or none")
		}
	case hashAlgorithm:
		if string(text) != "SHA-256" {
			d.fault(InvalidValue, f, "is not SHA-256; there is no other")
		}
	case dataClassification:
		if d.row.DataClassification = classification(text); d.row.DataClassification == nil {
			d.fault(InvalidValue, f, "is none of PUBLIC, INTERNAL, CONFIDENTIAL and PHI; send one of them")
		}
	default: // any text will do
	}
}

// checkLatency checks the number of processingLatency.
func (d *Decoder) checkLatency(raw []byte) {
	n, _, _ := readNumber(raw, 0)
	floor, exact := n.magnitude()
	if n.negative && (floor > 0 || !exact) {
		d.fault(InvalidValue, processingLatency, "is negative; send milliseconds from 0 up")
		return
	}
	if floor > math.MaxInt32 {
		d.fault(NumberOutOfRange, processingLatency, "is over 2147483647; send milliseconds within that")
		return
	}
	d.row.Latency = int32(floor) //nolint:gosec // it is bounded just above
}

// checkRetentionDays checks a retentionPolicy that is a number of days.
func (d *Decoder) checkRetentionDays(raw []byte) {
	n, _, _ := readNumber(raw, 0)
	days, exact := n.magnitude()
	if n.negative || !exact || days < 1 || days > maxRetentionDays {
		d.fault(InvalidValue, retentionPolicy, "is not a whole number of days from 1 to 36500; send one, or a policy's name")
		return
	}
	before := len(d.decoded)
	d.decoded = strconv.AppendInt(d.decoded, days, 10)
	d.texts[retentionPolicy] = d.decoded[before:len(d.decoded):len(d.decoded)]
}

// checkHash holds the event's own hash against ours. Its case doesn't matter: that they are hex digits was
// checked, and 0x20 is what their cases differ by.
func (d *Decoder) checkHash() {
	other := byte(0)
	for i, c := range d.texts[hash] {
		other |= (c | 0x20) ^ d.row.Hash[i]
	}
	if other != 0 {
		d.fault(HashMismatch, hash, "is not the hash of this event; hash the fields as they are sent")
	}
}

// checkSignature holds the event's signature against ours, in a time that doesn't tell how much of it is right.
func (d *Decoder) checkSignature() {
	text := d.texts[signature]
	if text == nil {
		return
	}
	d.hex = d.signer.AppendHex(d.hex[:0], d.row.Hash[:])
	var lower [hashing.HexLen]byte
	if copy(lower[:], text) == len(text) {
		for i, c := range lower {
			if 'A' <= c && c <= 'F' {
				lower[i] = c | 0x20
			}
		}
	}
	if len(text) != len(lower) || subtle.ConstantTimeCompare(lower[:], d.hex) != 1 {
		d.fault(SignatureMismatch, signature, "is not ours for this event; check the key, and sign the hash's lowercase hex digits")
	}
}

// fault notes what is wrong with a field.
func (d *Decoder) fault(reason Reason, f field, text string) {
	at := -1
	if m := d.scanner.members[f]; m.end > 0 {
		at = m.start
	}
	d.scanner.fault.note(fault{reason: reason, field: f, at: at, text: text})
}

// isHash reports whether text is a SHA-256 in hex digits.
func isHash(text []byte) bool {
	all := rune(0) // negative once one is no digit: digits are as good as random, so a branch for each would often be guessed wrong
	for _, c := range text {
		all |= hexDigit(c)
	}
	return all >= 0 && len(text) == hashing.HexLen
}

// classification returns a data classification as it is stored, or nil if text is none in any (ASCII) case.
func classification(text []byte) []byte {
	for _, name := range classifications {
		if equalUpper(text, name) {
			return name
		}
	}
	return nil
}

// equalUpper reports whether text, its ASCII letters in upper case, is name.
func equalUpper(text, name []byte) bool {
	if len(text) != len(name) {
		return false
	}
	for i, c := range text {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}
