package sink

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/event"
	"auditsink/internal/sample"
)

var (
	sampleNow   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	sampleRules = event.Rules{MaxBytes: 1 << 20, Horizon: 2555 * 24 * time.Hour}
)

// sampleRecords are n events of the benchmark's kind, and the bytes of their values.
func sampleRecords(n int) (records []event.Record, bytes int64) {
	generator := sample.New(1)
	records = make([]event.Record, n)
	for i := range records {
		key, value := generator.Next(sampleNow)
		records[i] = event.Record{Offset: int64(i), Timestamp: sampleNow.UnixMilli(), Key: key, Value: value}
		bytes += int64(len(value))
	}
	return records, bytes
}

// BenchmarkAppendRow is the encoding of a row.
func BenchmarkAppendRow(b *testing.B) {
	records, _ := sampleRecords(1)
	row, quarantine := event.NewDecoder(sampleRules).Take(&records[0], sampleNow)
	require.Nil(b, quarantine)
	dst := appendRow(nil, row, 1, &records[0], sampleNow.UnixMilli())
	b.SetBytes(int64(len(dst)))
	b.ReportAllocs()
	for b.Loop() {
		dst = appendRow(dst[:0], row, 1, &records[0], sampleNow.UnixMilli())
	}
}

// BenchmarkCopyData is a batch on its way from records to what COPY sends: decoding, checks, hash, encoding.
func BenchmarkCopyData(b *testing.B) {
	records, bytes := sampleRecords(5000)
	a := &attempt{Sink: New(nil, 1, sampleRules, nil, nil, nil), batch: &Batch{Claim: Claim{LaneID: 1}, Records: records}}
	part := make([]byte, 64<<10-5) // as pgconn reads: a message of 64 KiB with its head
	b.SetBytes(bytes)
	b.ReportAllocs()
	for b.Loop() {
		stream := a.take(records, sampleNow)
		for {
			if _, err := stream.Read(part); err != nil {
				require.ErrorIs(b, err, io.EOF)
				break
			}
		}
		a.release(stream)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(records)), "ns/row")
}

// TestEncodingAllocatesNothing for a row, and for a batch the same however many records it has.
func TestEncodingAllocatesNothing(t *testing.T) {
	records, _ := sampleRecords(2000)
	row, quarantine := event.NewDecoder(sampleRules).Take(&records[0], sampleNow)
	require.Nil(t, quarantine)
	dst := make([]byte, 0, 4096)
	require.Zero(t, testing.AllocsPerRun(100, func() { dst = appendRow(dst[:0], row, 1, &records[0], sampleNow.UnixMilli()) }))

	space, part := &scratch{decoder: event.NewDecoder(sampleRules)}, make([]byte, 64<<10)
	batch := func(n int) float64 {
		return testing.AllocsPerRun(10, func() {
			stream := newRowStream(space, 1, records[:n], nil, sampleNow)
			for _, err := stream.Read(part); err == nil; _, err = stream.Read(part) {
			}
			if stream.rows != int64(n) {
				t.Fatal("rows are missing")
			}
		})
	}
	require.Equal(t, batch(20), batch(len(records)))
}

// TestCopyData: whatever the size of the reads, they give the rows in order, with head and trailer; and each but the last is full.
func TestCopyData(t *testing.T) {
	records, _ := sampleRecords(500)
	decoder := event.NewDecoder(sampleRules)
	want := bytes.Clone(copyHeader)
	for i := range records {
		row, quarantine := decoder.Take(&records[i], sampleNow)
		require.Nil(t, quarantine)
		want = appendRow(want, row, 7, &records[i], sampleNow.UnixMilli())
	}
	want = append(want, copyTrailer...)
	for _, size := range []int{1, 1000, chunk, 64<<10 - 5, len(want), len(want) + 1} {
		stream := newRowStream(&scratch{decoder: decoder}, 7, records, nil, sampleNow)
		var got []byte
		part := make([]byte, size)
		for {
			n, err := stream.Read(part)
			if err != nil {
				require.ErrorIs(t, err, io.EOF)
				require.Zero(t, n)
				break
			}
			got = append(got, part[:n]...)
			require.True(t, n == size || len(got) == len(want), "a read of %d gave %d before the end", size, n)
		}
		require.True(t, bytes.Equal(want, got), "reads of %d", size)
	}
}

// TestReleasedStream: one that was ended gives no more, since others have its scratch space; and that holds on to no giant's.
func TestReleasedStream(t *testing.T) {
	records, _ := sampleRecords(500)
	a := &attempt{Sink: New(nil, 1, sampleRules, nil, nil, nil), batch: &Batch{Claim: Claim{LaneID: 1}}}
	stream, part := a.take(records, sampleNow), make([]byte, chunk/2)
	_, err := stream.Read(part)
	require.NoError(t, err)
	require.NotEmpty(t, stream.unread)
	a.release(stream)
	n, err := stream.Read(part)
	require.Zero(t, n)
	require.ErrorIs(t, err, io.ErrClosedPipe)

	giant := append([]byte(`{"big":"`), bytes.Repeat([]byte("x"), 2*keepChunk)...)
	records[0].Value = append(append(giant, `",`...), records[0].Value[1:]...)
	stream = a.take(records, sampleNow)
	_, err = io.Copy(io.Discard, stream)
	require.NoError(t, err)
	require.EqualValues(t, len(records), stream.rows)
	a.release(stream)
	require.LessOrEqual(t, cap(stream.scratch.buf), keepChunk)
}
