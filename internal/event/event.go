// Package event turns a Kafka record into a row of audit_log, or says why it can't be one. It is pure: a
// record, the rules and a clock's reading in, a Row or a Quarantine out; what it takes from a record
// depends on nothing else, so that taking it again gives the same answer.
package event

import "time"

// Record is what Take needs of a Kafka record.
type Record struct {
	Offset    int64
	Timestamp int64 // milliseconds since the Unix epoch; negative when the record has none
	Key       []byte
	Value     []byte // nil is a tombstone
	Headers   []Header
}

// Header is one header of a Kafka record.
type Header struct {
	Key   string
	Value []byte
}

// Rules are the settings that decide what is taken. None has a default here: the zero Rules quarantine
// every record.
type Rules struct {
	MaxBytes     int           // the longest value taken, in bytes
	Horizon      time.Duration // how far before its record an event may lie
	SignatureKey []byte        // key of the producers' signatures; empty leaves them unchecked
}

// Row holds the columns of audit_log that come from the event. A nil slice is SQL NULL. The slices are
// views into the record's value or into the decoder's scratch space: they hold until the next Take.
type Row struct {
	Timestamp          int64  // microseconds since the Unix epoch
	TimestampText      []byte // the text received, where it is not the canonical text of Timestamp
	TTL                []byte
	PrincipalID        []byte
	OrganizationID     []byte
	Action             []byte
	TargetResourceType []byte
	TargetResourceID   []byte
	Status             []byte
	OutcomeDescription []byte
	CorrelationID      []byte
	Hash               [64]byte // the event hash as we compute it, lowercase hex
	EventVersion       []byte
	DataClassification []byte
	RetentionPolicy    []byte
	Latency            int32 // floor of processingLatency in milliseconds, 0 without one
	ArchivedAt         int64 // microseconds since the Unix epoch, if HasArchivedAt
	HasArchivedAt      bool
	Details            []byte // a JSON object of the members that have no column
	Prehash            []byte // the text that Hash is taken over
}

// Quarantine says why a record can't be a row.
type Quarantine struct {
	Reason Reason
	Detail string // what is wrong, where, and what to do; never content of the event
}
