package event

import (
	"testing"
	"time"
)

// benchmarkEvent is an ordinary event of about 600 bytes.
const benchmarkEvent = `{"timestamp":"2026-11-15T10:30:00.123Z","ttl":"30d","principalId":"practitioner-4711","organizationId":"clinic-berlin-mitte-07",` +
	`"action":"fhir.patient.read","targetResourceType":"Patient","targetResourceId":"5f1b2c9e-6d0a-4c11-9a55-0f6d3f0a7c21","status":"success",` +
	`"outcomeDescription":"Read of patient record for scheduled visit","correlationId":"b1946ac9-2492-4d23-9c1b-bd9e0a6c3a77","eventVersion":"1.0",` +
	`"dataClassification":"PHI","retentionPolicy":"standard","processingLatency":12.5,` +
	`"sessionContext":{"sessionId":"s-8812","ipAddress":"10.2.33.4","userAgent":"Mozilla/5.0 (X11; Linux x86_64)"},"facility":"ward-3"}`

var benchmarkNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func BenchmarkTake(b *testing.B) {
	d := NewDecoder(Rules{MaxBytes: 1 << 20, Horizon: 2555 * 24 * time.Hour})
	rec := &Record{Timestamp: benchmarkNow.UnixMilli(), Value: []byte(benchmarkEvent)}
	b.SetBytes(int64(len(rec.Value)))
	b.ReportAllocs()
	for b.Loop() {
		if _, q := d.Take(rec, benchmarkNow); q != nil {
			b.Fatal(q.Detail)
		}
	}
}

func BenchmarkScan(b *testing.B) {
	var s scanner
	value := []byte(benchmarkEvent)
	b.SetBytes(int64(len(value)))
	b.ReportAllocs()
	for b.Loop() {
		s.reset(value)
		s.scan()
	}
}
