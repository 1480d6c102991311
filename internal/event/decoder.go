package event

import (
	"strconv"
	"time"

	"auditsink/hashing"
)

// keepBytes bounds the scratch space that a decoder keeps from one record to the next, each piece of it.
const keepBytes = 1 << 20

// Decoder takes records. It belongs to one goroutine: it holds the scratch space that rows point into.
type Decoder struct {
	rules   Rules
	signer  *hashing.Signer // nil leaves signatures unchecked
	scanner scanner
	texts   [fieldCount][]byte // the known members that are strings, unescaped
	decoded []byte             // those of them that had escapes
	row     Row
	prehash []byte
	hex     []byte // the signature
}

// NewDecoder returns a decoder for the rules.
func NewDecoder(rules Rules) *Decoder {
	d := &Decoder{rules: rules}
	if len(rules.SignatureKey) > 0 {
		d.signer = hashing.NewSigner(rules.SignatureKey)
	}
	return d
}

// Take makes a row of a record, or says why it can't be one: exactly one of the results is not nil. The row
// holds until the next Take. now is the wall clock, against which a record's own timestamp is held.
func (d *Decoder) Take(rec *Record, now time.Time) (*Row, *Quarantine) {
	value := rec.Value
	if len(value) == 0 {
		return nil, &Quarantine{Reason: Empty, Detail: "the record has no value; send each event as one JSON object"}
	}
	if limit := min(d.rules.MaxBytes, maxText); len(value) > limit {
		return nil, &Quarantine{Reason: TooLarge, Detail: "the value has " + strconv.Itoa(len(value)) + " bytes, over the limit of " +
			strconv.Itoa(limit) + "; send a smaller event or raise AUDITSINK_EVENT_MAX_BYTES"}
	}
	s := &d.scanner
	s.reset(value)
	s.scan()
	if s.fault.reason == 0 || s.fault.reason > TooDeep {
		d.checkFields(instant(rec, now))
	}
	if s.fault.reason == 0 {
		d.fill()
	}
	if s.fault.reason != 0 {
		return nil, s.fault.quarantine()
	}
	return &d.row, nil
}

// instant returns the microsecond that an event's timestamp is held against: that of its record, as far as it
// is no more than a day ahead of the wall clock.
func instant(rec *Record, now time.Time) int64 {
	if rec.Timestamp < 0 {
		return now.UnixMicro()
	}
	latest := now.Add(maxAhead).UnixMicro()
	if rec.Timestamp > latest/1000 {
		return latest
	}
	return rec.Timestamp * 1000
}

// fill makes the row of members that break no rule of their own, and holds its hash against theirs.
func (d *Decoder) fill() {
	row, texts := &d.row, &d.texts
	row.TTL = texts[ttl]
	row.PrincipalID = texts[principalID]
	row.OrganizationID = texts[organizationID]
	row.Action = texts[action]
	row.TargetResourceType = texts[targetResourceType]
	row.TargetResourceID = texts[targetResourceID]
	row.Status = texts[status]
	row.OutcomeDescription = texts[outcomeDescription]
	row.CorrelationID = texts[correlationID]
	row.EventVersion = orDefault(texts[eventVersion], defaultVersion)
	row.RetentionPolicy = orDefault(texts[retentionPolicy], defaultRetention)
	row.Details = nil
	if details := d.scanner.details; len(details) > 0 {
		d.scanner.details = append(details, '}')
		row.Details = d.scanner.details
	}
	row.TimestampText = nil
	if !isCanonical(texts[timestamp]) {
		row.TimestampText = texts[timestamp]
	}
	d.prehash = hashing.AppendPrehash(shrink(d.prehash, keepBytes)[:0], &hashing.Fields{
		Action:             row.Action,
		OrganizationID:     row.OrganizationID,
		OutcomeDescription: row.OutcomeDescription,
		PrincipalID:        row.PrincipalID,
		Status:             row.Status,
		TargetResourceID:   row.TargetResourceID,
		TargetResourceType: row.TargetResourceType,
		Timestamp:          texts[timestamp],
	})
	row.Prehash = d.prehash
	row.Hash = hashing.Hex(d.prehash)
	d.checkHash()
	d.checkSignature()
}

func orDefault(text, otherwise []byte) []byte {
	if text == nil {
		return otherwise
	}
	return text
}

// shrink returns scratch, or nil if a giant made it larger than what to keep.
func shrink[T any](scratch []T, keep int) []T {
	if cap(scratch) > keep {
		return nil
	}
	return scratch
}
