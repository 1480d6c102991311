package event

import (
	"testing"
	"time"

	"auditsink/internal/sample"
)

// benchmarkEvent is an ordinary event of about 600 bytes.
const benchmarkEvent = `{"timestamp":"2026-11-15T10:30:00.123Z","ttl":"30d","principalId":"practitioner-4711","organizationId":"clinic-berlin-mitte-07",` +
	`"action":"fhir.patient.read","targetResourceType":"Patient","targetResourceId":"5f1b2c9e-6d0a-4c11-9a55-0f6d3f0a7c21","status":"success",` +
	`"outcomeDescription":"Read of patient record for scheduled visit","correlationId":"b1946ac9-2492-4d23-9c1b-bd9e0a6c3a77","eventVersion":"1.0",` +
	`"dataClassification":"PHI","retentionPolicy":"standard","processingLatency":12.5,` +
	`"sessionContext":{"sessionId":"s-8812","ipAddress":"10.2.33.4","userAgent":"Mozilla/5.0 (X11; Linux x86_64)"},"facility":"ward-3"}`

var benchmarkNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// sampleRecords are events of the benchmark's kind, enough of them that the processor can't learn each by heart, and their mean size.
func sampleRecords(change ...func(*sample.Generator)) (records []Record, bytes int64) {
	generator := sample.New(1)
	for _, c := range change {
		c(generator)
	}
	records = make([]Record, 1000)
	for i := range records {
		key, value := generator.Next(benchmarkNow)
		records[i] = Record{Offset: int64(i), Timestamp: benchmarkNow.UnixMilli(), Key: key, Value: value}
		bytes += int64(len(value))
	}
	return records, bytes / int64(len(records))
}

// BenchmarkTake is an event's decoding, checks and hash.
func BenchmarkTake(b *testing.B) {
	for name, change := range map[string][]func(*sample.Generator){
		"plain": nil, "hashed": {(*sample.Generator).HashAll}, "escaped": {(*sample.Generator).Flat},
	} {
		b.Run(name, func(b *testing.B) {
			d := NewDecoder(Rules{MaxBytes: 1 << 20, Horizon: 2555 * 24 * time.Hour})
			records, bytes := sampleRecords(change...)
			b.SetBytes(bytes)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, q := d.Take(&records[i%len(records)], benchmarkNow); q != nil {
					b.Fatal(q.Detail)
				}
			}
		})
	}
}

// BenchmarkScan is the part of it that reads the JSON.
func BenchmarkScan(b *testing.B) {
	var s scanner
	records, bytes := sampleRecords()
	b.SetBytes(bytes)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.reset(records[i%len(records)].Value)
		s.scan()
	}
}
