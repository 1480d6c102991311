package sink

import (
	"encoding/binary"
	"math"

	"auditsink/internal/event"
)

// The binary format of COPY (PostgreSQL, SQL commands, COPY, "Binary Format"): a signature, then for each row its
// number of fields and each field's length and bytes, then -1. All numbers are big-endian; times are microseconds since 2000.

var (
	copyHeader  = []byte("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	copyTrailer = []byte{0xff, 0xff}
)

// epoch2000 is 2000-01-01 in microseconds since 1970.
const epoch2000 = 946_684_800_000_000

const copyRows = `COPY audit_log (timestamp, timestamp_text, ttl, principal_id, organization_id, action, target_resource_type,
	target_resource_id, status, outcome_description, hash, hash_algorithm, event_version, correlation_id, data_classification,
	retention_policy, processing_latency, archived_at, details, lane_id, lane_offset) FROM STDIN (FORMAT binary)`

const rowFields = 21

var sha256Name = []byte("SHA-256")

// appendRow encodes a row for copyRows. flushed is the moment of the flush, in milliseconds since 1970.
func appendRow(b []byte, row *event.Row, lane int32, rec *event.Record, flushed int64) []byte {
	b = binary.BigEndian.AppendUint16(b, rowFields)
	b = appendTime(b, row.Timestamp)
	b = appendBytes(b, row.TimestampText)
	b = appendBytes(b, row.TTL)
	b = appendBytes(b, row.PrincipalID)
	b = appendBytes(b, row.OrganizationID)
	b = appendBytes(b, row.Action)
	b = appendBytes(b, row.TargetResourceType)
	b = appendBytes(b, row.TargetResourceID)
	b = appendBytes(b, row.Status)
	b = appendBytes(b, row.OutcomeDescription)
	b = appendBytes(b, row.Hash[:])
	b = appendBytes(b, sha256Name)
	b = appendBytes(b, row.EventVersion)
	b = appendBytes(b, row.CorrelationID)
	b = appendBytes(b, row.DataClassification)
	b = appendBytes(b, row.RetentionPolicy)
	b = appendInt32(b, latency(row.Latency, rec.Timestamp, flushed))
	if row.HasArchivedAt {
		b = appendTime(b, row.ArchivedAt)
	} else {
		b = appendNull(b)
	}
	b = appendJSON(b, row.Details)
	b = appendInt32(b, lane)
	return appendInt64(b, rec.Offset)
}

// latency is the event's own plus the time from the record's timestamp to the flush, in milliseconds within int4. A record from the
// future, or without a timestamp, adds nothing.
func latency(own int32, recorded, flushed int64) int32 {
	if recorded < 0 || flushed <= recorded {
		return own
	}
	return int32(min(int64(own)+flushed-recorded, math.MaxInt32)) //nolint:gosec // bounded by MaxInt32, and neither is negative
}

func appendNull(b []byte) []byte { return append(b, 0xff, 0xff, 0xff, 0xff) }

// appendBytes encodes text or bytea; nil is NULL.
func appendBytes(b, v []byte) []byte {
	if v == nil {
		return appendNull(b)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(v))) //nolint:gosec // a record is far below 4 GiB
	return append(b, v...)
}

// appendJSON encodes jsonb, which starts with its version; nil is NULL.
func appendJSON(b, v []byte) []byte {
	if v == nil {
		return appendNull(b)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(v)+1)) //nolint:gosec // a record is far below 4 GiB
	b = append(b, 1)
	return append(b, v...)
}

func appendInt32(b []byte, v int32) []byte {
	b = append(b, 0, 0, 0, 4)
	return binary.BigEndian.AppendUint32(b, uint32(v)) //nolint:gosec // two's complement is what the format wants
}

func appendInt64(b []byte, v int64) []byte {
	b = append(b, 0, 0, 0, 8)
	return binary.BigEndian.AppendUint64(b, uint64(v)) //nolint:gosec // two's complement is what the format wants
}

// appendTime encodes timestamptz from microseconds since 1970.
func appendTime(b []byte, micros int64) []byte { return appendInt64(b, micros-epoch2000) }
