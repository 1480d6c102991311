package consumer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"auditsink/internal/event"
	"auditsink/metrics"
	"auditsink/sink"
)

var errTest = errors.New("refused")

var wide = limits{rows: 1000, bytes: 1 << 20, interval: time.Second}

// newTestLane makes a lane that runs from offset 0. What it tells its tap is appended to the taps given.
func newTestLane(l limits, taps ...*[]bool) *lane {
	lane := newLane(context.Background(), sink.Lane{Topic: "t"}, l, func(open bool) {
		for _, t := range taps {
			*t = append(*t, open)
		}
	})
	lane.share = 1 << 30
	lane.place(sink.Claim{LaneID: 1, Epoch: 1, Next: 0, LeaderEpoch: -1})
	lane.resume()
	return lane
}

// due is the batch that is due.
func due(t *testing.T, l *lane) *sink.Batch {
	t.Helper()
	b, trouble := l.next(t.Context())
	require.NoError(t, trouble)
	require.NotNil(t, b)
	return b
}

// ended requires that the lane is to end, with nothing left to be stored.
func ended(t *testing.T, l *lane) {
	t.Helper()
	b, trouble := l.next(t.Context())
	require.NoError(t, trouble)
	require.Nil(t, b)
}

func records(offsets ...int64) []*kgo.Record {
	all := make([]*kgo.Record, len(offsets))
	for i, o := range offsets {
		all[i] = &kgo.Record{Offset: o, Value: []byte("0123456789"), Timestamp: time.UnixMilli(o)}
	}
	return all
}

// TestBatchIsDue by rows, by bytes, by age, and when draining.
func TestBatchIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLane(limits{rows: 3, bytes: 1 << 20, interval: time.Second})
		l.put(records(0, 1), time.Now())
		began := time.Now()
		b := due(t, l)
		require.Equal(t, time.Second, time.Since(began), "by age")
		require.Len(t, b.Records, 2)
		l.stored(b)

		l.put(records(2, 3, 4, 5), time.Now())
		began = time.Now()
		b = due(t, l)
		require.Zero(t, time.Since(began), "by rows")
		require.Len(t, b.Records, 3)
		require.EqualValues(t, 5, b.To)
		l.stored(b)

		time.Sleep(700 * time.Millisecond) // the clock is synctest's
		began = time.Now()
		b = due(t, l)
		require.Equal(t, 300*time.Millisecond, time.Since(began), "what stayed behind is as old as it arrived")
		l.stored(b)

		l.put(records(6), time.Now())
		l.drain()
		began = time.Now()
		b = due(t, l)
		require.Zero(t, time.Since(began), "draining")
		l.stored(b)
		ended(t, l)

		l = newTestLane(limits{rows: 1000, bytes: 3 * (recordOverhead + 10), interval: time.Hour})
		l.put(records(0, 1), time.Now())
		go l.put(records(2, 3), time.Now())
		b = due(t, l)
		require.Len(t, b.Records, 3, "by bytes")
	})
}

// TestLagAge: what waits at the broker is as old as what was stored last, unless there was no lag since.
func TestLagAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLane(wide)
		require.Zero(t, l.lagAge(5, time.Now()), "nothing is known of how long they have waited")
		time.Sleep(time.Minute)
		require.Equal(t, time.Minute, l.lagAge(5, time.Now()))

		// A broker that hands out less than comes: what is fetched is stored at once, an hour old.
		for offset := range int64(5) {
			fetched := records(offset)
			fetched[0].Timestamp = time.Now().Add(-time.Hour)
			l.put(fetched, time.Now())
			require.Equal(t, time.Hour, l.lagAge(1000, time.Now()), "buffered")
			l.stored(due(t, l))
			require.InDelta(t, time.Hour, l.lagAge(1000, time.Now()), float64(time.Minute), "and there is more where that came from")
		}

		require.Zero(t, l.lagAge(0, time.Now()))
		time.Sleep(5 * time.Second)
		require.Equal(t, 5*time.Second, l.lagAge(1, time.Now()), "it came since")
	})
}

// TestOldEnoughCountsTheFlush: under a steady load records are as old as the interval when they are stored, and not by a flush older; where flushes take too
// long, batches don't become smaller without end, and that is forgotten.
func TestOldEnoughCountsTheFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLane(limits{rows: 1000, bytes: 1 << 20, interval: time.Second})
		const every = 10 * time.Millisecond
		began, stop := time.Now(), make(chan struct{})
		defer close(stop)
		go func() {
			for next := int64(0); ; next++ {
				l.put(records(next), time.Now())
				select {
				case <-stop:
					return
				case <-time.After(every): // the clock is synctest's
				}
			}
		}()
		flush := func(takes time.Duration) (age time.Duration, rows int) { // of the oldest record
			b := due(t, l)
			first, rows := time.Duration(b.Records[0].Offset), len(b.Records)
			time.Sleep(takes)
			l.stored(b)
			return time.Since(began) - first*every, rows
		}
		age, _ := flush(200 * time.Millisecond)
		require.Equal(t, 1200*time.Millisecond, age, "nothing is known before the first")
		age, rows := flush(200 * time.Millisecond)
		require.Equal(t, time.Second, age)
		require.InDelta(t, 80, rows, 1)
		for _, takes := range []time.Duration{150, 180, 100, 170} {
			age, _ = flush(takes * time.Millisecond)
			require.LessOrEqual(t, age, time.Second, "the longest counts, for a while")
			require.Greater(t, age, 850*time.Millisecond)
		}
		flush(time.Minute)
		for _, rows = flush(0); rows == 1000; _, rows = flush(0) {
		}
		flush(0) // what was left
		_, rows = flush(0)
		require.Greater(t, rows, 40, "half of the interval is waited for, however long flushes take")
		for range 30 {
			age, _ = flush(100 * time.Millisecond)
		}
		require.Greater(t, age, 980*time.Millisecond, "the minute is forgotten")
		require.LessOrEqual(t, age, time.Second)
	})
}

// TestOldRecordsDoNotAge: a fetch of nothing but what was taken before doesn't make what comes next older than it is.
func TestOldRecordsDoNotAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLane(wide)
		l.put(records(0, 1), time.Now())
		l.stored(due(t, l))
		l.put(records(0, 1), time.Now())
		time.Sleep(time.Minute)
		l.put(records(1, 2), time.Now())
		began := time.Now()
		b := due(t, l)
		require.GreaterOrEqual(t, time.Since(began), wide.interval/2)
		require.Len(t, b.Records, 1)
	})
}

func TestHolesMoveThePosition(t *testing.T) {
	l := newTestLane(wide)
	l.put(records(2, 5), time.Now())
	l.drain()
	b := due(t, l)
	require.EqualValues(t, 0, b.Claim.Next, "a batch continues the position, and not its first record")
	require.EqualValues(t, 6, b.To)
}

func TestPausedOverItsShareAndResumedBelowHalf(t *testing.T) {
	var taps []bool
	l := newTestLane(limits{rows: 2, bytes: 1 << 20, interval: time.Hour}, &taps)
	taps = nil
	one := int64(recordOverhead + 10)
	l.share = 4 * one
	_, bytes := l.put(records(0, 1, 2, 3), time.Now())
	require.Equal(t, 4*one, bytes)
	require.Empty(t, taps)
	l.put(records(4), time.Now())
	require.Equal(t, []bool{false}, taps)
	l.put(records(5), time.Now())
	require.Len(t, taps, 1, "paused already")
	require.Equal(t, 2*one, l.stored(due(t, l)))
	l.stored(due(t, l))
	require.Len(t, taps, 1, "half is left")
	l.stored(due(t, l))
	require.Equal(t, []bool{false, true}, taps)
}

// TestPausesOfALaneThatWasGivenUp would hit its next life.
func TestPausesOfALaneThatWasGivenUp(t *testing.T) {
	var taps []bool
	l := newTestLane(wide, &taps)
	l.suspend(waiting, "fenced")
	require.False(t, taps[len(taps)-1])
	l.release()
	require.True(t, taps[len(taps)-1], "the next life begins open")
	taps = nil
	l.suspend(halted, "too late")
	require.Empty(t, taps)
}

func TestALaneThatHaltedStaysHalted(t *testing.T) {
	l := newTestLane(wide)
	require.True(t, l.suspend(waiting, "fenced"))
	require.True(t, l.suspend(halted, "refused"))
	require.False(t, l.suspend(waiting, "late"))
	require.False(t, l.resume())
	require.Equal(t, halted, l.phase)
}

// TestWhatIsDroppedStaysAhead: the position must not move over records that were dropped, whatever comes after.
func TestWhatIsDroppedStaysAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestLane(wide)
		l.put(records(0, 1, 2), time.Now())
		l.discard()
		_, due := l.due(time.Now().Add(time.Hour))
		require.False(t, due)
		require.True(t, l.drain())
		ended(t, l)
	})
}

// TestAstray: what is buffered is stored first, at once; then the lane's goroutine is told, until it has put the lane somewhere else.
func TestAstray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taps []bool
		l := newTestLane(wide, &taps)
		l.put(records(0, 1), time.Now())
		taps = nil
		l.stray(errTest, time.Now())
		l.stray(errors.New("another"), time.Now())
		times, why := l.fault()
		require.Equal(t, errTest, why)
		require.Equal(t, 1, times)
		require.Equal(t, []bool{false}, taps)
		began := time.Now()
		b := due(t, l)
		require.Zero(t, time.Since(began))
		require.EqualValues(t, 2, b.To)
		l.stored(b)
		require.Equal(t, []bool{false}, taps, "it stays paused")
		for range 2 {
			_, trouble := l.next(t.Context())
			require.ErrorIs(t, trouble, errAstray)
		}
		require.True(t, l.suspend(waiting, ""))
		l.place(sink.Claim{LaneID: 1, Epoch: 1, Next: 9})
		require.True(t, l.resume())
		require.True(t, taps[len(taps)-1])
		l.put(records(9), time.Now())
		l.drain()
		require.EqualValues(t, 10, due(t, l).To)
	})
}

// TestCheck: a lane at rest whose position isn't what it was left at is told; one that moves, or has moved since it was looked at, is not.
func TestCheck(t *testing.T) {
	var moved *sink.MovedError
	var fenced *sink.FencedError
	l := newTestLane(wide)
	had := l.claimed()
	l.check(had, 1, 0, "me")
	require.NoError(t, l.trouble())
	l.check(had, 1, 4, "me")
	require.ErrorAs(t, l.trouble(), &moved)
	l.place(had)
	require.NoError(t, l.trouble(), "a new place, a new look")
	l.check(had, 2, 0, "another")
	require.ErrorAs(t, l.trouble(), &fenced)

	l = newTestLane(wide)
	l.put(records(0), time.Now())
	l.drain()
	l.phase = running
	l.astray = errTest // due at once
	b := due(t, l)
	l.check(had, 1, 1, "me")
	require.NoError(t, l.suspect, "a batch is under way")
	l.stored(b)
	l.check(had, 1, 0, "me")
	require.NoError(t, l.suspect, "what was read is older than the batch")
}

func TestRecordsForALaneThatDoesNotRunAreDropped(t *testing.T) {
	for _, p := range []phase{waiting, draining, halted} {
		l := newTestLane(wide)
		l.phase = p
		rows, bytes := l.put(records(0, 1), time.Now())
		require.Zero(t, rows)
		require.Zero(t, bytes)
	}
}

// TestLaneModel drives a lane at random: what is stored is what was put, in order, once, and the position is never beyond a record
// that isn't stored.
func TestLaneModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newTestLane(limits{rows: rapid.IntRange(1, 5).Draw(t, "rows"), bytes: rapid.Int64Range(1, 2000).Draw(t, "bytes"), interval: time.Millisecond})
		l.share = rapid.Int64Range(2, 5000).Draw(t, "share")
		var log, stored []int64 // offsets of all records in the broker, and of those stored
		end, fetched := int64(0), int64(0)
		now := time.Unix(0, 0)
		t.Repeat(map[string]func(*rapid.T){
			"produce": func(t *rapid.T) {
				end += rapid.Int64Range(0, 2).Draw(t, "hole")
				log = append(log, end)
				end++
			},
			"fetch": func(t *rapid.T) {
				var batch []int64
				for _, o := range log {
					if o >= fetched && len(batch) < 4 {
						batch = append(batch, o)
					}
				}
				if len(batch) == 0 {
					t.Skip()
				}
				l.put(records(batch...), now)
				fetched = batch[len(batch)-1] + 1
			},
			"store": func(t *rapid.T) {
				now = now.Add(time.Second)
				l.mu.Lock()
				_, due := l.due(now)
				if !due {
					l.mu.Unlock()
					t.Skip()
				}
				b := l.cut()
				l.mu.Unlock()
				if rapid.Bool().Draw(t, "refused") { // fenced: drop, claim again, fetch from the position
					l.suspend(waiting, "")
					l.discard()
					c := b.Claim
					c.Epoch++
					l.place(c)
					l.resume()
					fetched = c.Next
					return
				}
				for _, r := range b.Records {
					stored = append(stored, r.Offset)
				}
				l.stored(b)
			},
			"": func(t *rapid.T) {
				position := l.position()
				var want []int64
				for _, o := range log {
					if o < position {
						want = append(want, o)
					}
				}
				require.Equal(t, want, stored)
				require.GreaterOrEqual(t, l.bytes, int64(0))
				require.Equal(t, l.rows == 0, len(l.queue) == 0)
			},
		})
	})
}

// TestFaultsInARow: records that come end the row, and so does a minute.
func TestFaultsInARow(t *testing.T) {
	l, now := newTestLane(wide), time.Unix(1000, 0)
	stray := func(after time.Duration) int {
		now = now.Add(after)
		l.stray(errTest, now)
		times, _ := l.fault()
		l.suspend(waiting, "")
		l.place(l.claimed())
		l.resume()
		return times
	}
	require.Equal(t, 1, stray(0))
	require.Equal(t, 2, stray(time.Second))
	require.Equal(t, 3, stray(time.Minute))
	require.Equal(t, 1, stray(time.Minute+1))
	l.put(records(0), now)
	require.Equal(t, 1, stray(time.Second))
}

// TestEpochOfABatch: a batch that ends in the middle of a fetch has the leader epoch of its own last record.
func TestEpochOfABatch(t *testing.T) {
	l := newTestLane(limits{rows: 2, bytes: 1 << 20, interval: time.Hour})
	fetch := records(0, 1, 2, 3, 4)
	for i, epoch := range []int32{5, 5, 6, 6, 7} {
		fetch[i].LeaderEpoch = epoch
	}
	l.put(fetch, time.Now())
	l.drain()
	for _, epoch := range []int32{5, 6, 7} {
		b := due(t, l)
		require.Equal(t, epoch, b.LeaderEpoch, b.To)
		l.stored(b)
	}
	ended(t, l)
}

// TestHaltDuringABatchIsNotForgotten: the poll loop halts a lane while its goroutine is busy with something else; it goes on record all the same.
func TestHaltDuringABatchIsNotForgotten(t *testing.T) {
	c := &member{log: zap.NewNop(), metrics: metrics.New("test", event.Reasons()), lanes: map[laneKey]*lane{}}
	for _, trouble := range []error{&sink.MovedError{}, errAstray} {
		l := newTestLane(wide)
		l.stray(errTest, time.Now())
		c.halt(l, errors.New("the brokers lost records"))
		require.True(t, c.recover(t.Context(), l, trouble))
		_, next := l.next(t.Context())
		require.ErrorIs(t, next, errHalted)
		require.Equal(t, "the brokers lost records", l.reason())

		l = newTestLane(wide)
		l.stray(errTest, time.Now())
		l.drain()
		require.False(t, c.recover(t.Context(), l, trouble), "what follows a batch that was refused must not be stored")
	}
}
