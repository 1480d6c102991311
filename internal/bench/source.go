package main

import (
	"fmt"
	"time"

	"auditsink/config"
	"auditsink/internal/event"
	"auditsink/internal/sample"
)

// seed makes every run store the same events, but for their times.
const seed = 1

// horizon is how far back events may be: all the way.
const horizon = 36500 * 24 * time.Hour

// source makes events, one lane after the other, and their rows. Two of the same times make the same, so that nobody has to keep ten million rows.
type source struct {
	lanes int
	// firstLane is before the ID of the first lane in rows.
	firstLane int32
	// when is about when an event happens, by its number.
	when func(i int) time.Time

	generator *sample.Generator
	decoder   *event.Decoder
	made      int
	open      []chunk // by lane
}

func newSource(lanes int, when func(int) time.Time) *source {
	return &source{
		lanes: lanes, when: when, generator: sample.New(seed), open: make([]chunk, lanes),
		decoder: event.NewDecoder(event.Rules{MaxBytes: int(config.Default().EventMaxBytes), Horizon: horizon}),
	}
}

// now lets events happen when they are made.
func now(int) time.Time { return time.Now() }

// comparable makes events from now on of which a sink that only maps members to columns stores as much as we do: each carries its hash, and what has no column of its own comes as one
// text, for details.
func (s *source) comparable() {
	s.generator.HashAll()
	s.generator.Flat()
}

// next makes an event.
func (s *source) next() (lane int, rec event.Record) {
	lane = s.made % s.lanes
	at := s.when(s.made)
	rec = event.Record{Offset: int64(s.made / s.lanes), Timestamp: at.UnixMilli()}
	rec.Key, rec.Value = s.generator.Next(at)
	s.made++
	return lane, rec
}

// encode makes the next n events, hands each over, and returns their rows in the binary format of COPY: chunks of transactionRows at most, each of
// consecutive rows of one lane, as the sink cuts them.
func (s *source) encode(n int, each func(key, value []byte)) (chunks [][]byte, err error) {
	for range n {
		lane, rec := s.next()
		each(rec.Key, rec.Value)
		row, quarantine := s.decoder.Take(&rec, time.UnixMilli(rec.Timestamp))
		if quarantine != nil {
			return nil, fmt.Errorf("a sample event is no row: %s: %s", quarantine.Reason, quarantine.Detail)
		}
		c := &s.open[lane]
		c.add(row, s.firstLane+int32(lane+1), rec.Offset) //nolint:gosec // a small number
		if c.rows == transactionRows {
			chunks = append(chunks, c.cut())
		}
	}
	for lane := range s.open {
		if c := &s.open[lane]; c.rows > 0 {
			chunks = append(chunks, c.cut())
		}
	}
	return chunks, nil
}
