package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"auditsink/internal/event"
)

// transactionRows is how many rows a transaction of the ceiling stores.
const transactionRows = 5000

// load is what the rounds of a variant store: the events of a topic, and the same as rows.
type load struct {
	topic  string
	events int
	bytes  float64 // of all events' values
	// chunks are the rows in the binary format of COPY, each chunk consecutive rows of one lane, as the sink cuts them.
	chunks [][]byte
	// months is how many monthly partitions there are besides the current one and those ahead, each an earlier month.
	months int
}

// preload fills a new topic with events, evenly over its lanes, and encodes them.
func (b *bench) preload(ctx context.Context, topic string, events int) (*load, error) {
	return b.preloadFrom(ctx, topic, newSource(b.lanes, now), events)
}

// preloadFrom does it with the next events of a source.
func (b *bench) preloadFrom(ctx context.Context, topic string, s *source, events int) (*load, error) {
	producer, err := b.newTopic(ctx, topic, s.lanes)
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	l := &load{topic: topic, events: events}
	l.chunks, err = s.encode(events, func(key, value []byte) {
		producer.Produce(ctx, topic, key, value)
		l.bytes += float64(len(value))
	})
	if err != nil {
		return nil, err
	}
	if err := producer.Flush(ctx); err != nil {
		return nil, fmt.Errorf("fill topic %s: %w", topic, err)
	}
	return l, nil
}

// copyRows names the columns that the sink stores, in its order.
const copyRows = `COPY audit_log (timestamp, timestamp_text, ttl, principal_id, organization_id, action, target_resource_type,
	target_resource_id, status, outcome_description, hash, hash_algorithm, event_version, correlation_id, data_classification,
	retention_policy, processing_latency, archived_at, details, lane_id, lane_offset) FROM STDIN (FORMAT binary)`

// chunk encodes rows for copyRows (PostgreSQL, SQL commands, COPY, "Binary Format").
type chunk struct {
	data []byte
	rows int
}

func (c *chunk) add(row *event.Row, lane int32, offset int64) {
	if c.rows == 0 {
		c.data = append(c.data[:0], "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	}
	c.rows++
	const fields = 21
	c.data = binary.BigEndian.AppendUint16(c.data, fields)
	c.time(row.Timestamp)
	c.text(row.TimestampText)
	c.text(row.TTL)
	c.text(row.PrincipalID)
	c.text(row.OrganizationID)
	c.text(row.Action)
	c.text(row.TargetResourceType)
	c.text(row.TargetResourceID)
	c.text(row.Status)
	c.text(row.OutcomeDescription)
	c.text(row.Hash[:])
	c.text([]byte("SHA-256"))
	c.text(row.EventVersion)
	c.text(row.CorrelationID)
	c.text(row.DataClassification)
	c.text(row.RetentionPolicy)
	c.int32(row.Latency)
	if row.HasArchivedAt {
		c.time(row.ArchivedAt)
	} else {
		c.null()
	}
	c.json(row.Details)
	c.int32(lane)
	c.int64(offset)
}

// cut ends the chunk and begins the next.
func (c *chunk) cut() []byte {
	data := bytes.Clone(append(c.data, 0xff, 0xff))
	c.data, c.rows = c.data[:0], 0
	return data
}

func (c *chunk) null() { c.data = append(c.data, 0xff, 0xff, 0xff, 0xff) }

func (c *chunk) size(n int) { c.data = binary.BigEndian.AppendUint32(c.data, uint32(n)) } //nolint:gosec // events are small

func (c *chunk) text(v []byte) {
	if v == nil {
		c.null()
		return
	}
	c.size(len(v))
	c.data = append(c.data, v...)
}

// json encodes jsonb, which begins with its version.
func (c *chunk) json(v []byte) {
	if v == nil {
		c.null()
		return
	}
	c.size(len(v) + 1)
	c.data = append(append(c.data, 1), v...)
}

func (c *chunk) int32(v int32) {
	c.size(4)
	c.data = binary.BigEndian.AppendUint32(c.data, uint32(v)) //nolint:gosec // two's complement is what the format wants
}

func (c *chunk) int64(v int64) {
	c.size(8)
	c.data = binary.BigEndian.AppendUint64(c.data, uint64(v)) //nolint:gosec // two's complement is what the format wants
}

// time encodes timestamptz, which counts microseconds since 2000, from microseconds since 1970.
func (c *chunk) time(micros int64) {
	const year2000 = 946_684_800_000_000
	c.int64(micros - year2000)
}
