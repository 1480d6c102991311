package consumer

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/sample"
	"auditsink/sink"
)

// fetchRecords are how many records of the benchmark's kind come with a fetch of a lane, about.
const fetchRecords = 330

// fetches gives one fetch of sample events after the other, as far as wanted.
type fetches struct {
	generator *sample.Generator
	offset    int64
}

func newFetches() *fetches { return &fetches{generator: sample.New(1)} }

func (f *fetches) next() []*kgo.Record {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	all := make([]kgo.Record, fetchRecords)
	records := make([]*kgo.Record, fetchRecords)
	for i := range all {
		key, value := f.generator.Next(now)
		all[i] = kgo.Record{Offset: f.offset, Timestamp: now, Key: key, Value: value}
		records[i] = &all[i]
		f.offset++
	}
	return records
}

// BenchmarkHandOver is a fetch on its way through a lane: from the client's records to batches that are stored.
func BenchmarkHandOver(b *testing.B) {
	l := newTestLane(limits{rows: 5000, bytes: 8 << 20, interval: time.Hour})
	records := newFetches().next()
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		l.put(records, now)
		for i := range records {
			records[i].Offset += fetchRecords
		}
		if _, due := l.due(now); due {
			l.stored(l.cut())
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*fetchRecords), "ns/record")
}

// TestMemoryOfABacklog: what a lane holds is bounded by its share and one fetch, however much it has behind it and still before it.
func TestMemoryOfABacklog(t *testing.T) {
	const share = 2 << 20
	paused := false
	l := newLane(t.Context(), sink.Lane{Topic: "t"}, limits{rows: 1000, bytes: 8 << 20, interval: time.Hour}, func(open bool) { paused = !open })
	l.share = share
	l.place(sink.Claim{LaneID: 1, Epoch: 1, LeaderEpoch: -1})
	l.resume()
	backlog := newFetches()
	var most int64
	take := func(batches int) (heap uint64) {
		for range batches {
			for !paused { // the brokers have more than the lane ever takes
				l.put(backlog.next(), time.Now())
				most = max(most, l.bytes)
			}
			b, trouble := l.next(t.Context())
			require.NoError(t, trouble)
			require.Len(t, b.Records, 1000)
			l.stored(b)
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	few := take(20)
	many := take(60)
	require.Less(t, many, few+share/2, "after 60,000 records more")
	require.Greater(t, most, int64(share))
	require.Less(t, most, int64(share+fetchRecords*1200))
	runtime.KeepAlive(l)
}
