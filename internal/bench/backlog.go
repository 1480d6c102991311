package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"auditsink/internal/sample"
)

// backlogPlan is how much waits for a worker that starts.
type backlogPlan struct {
	lanes  int
	bytes  int64 // of the events' values
	codecs []string
}

// producing is how producers compress, by codec: ours with snappy, others not at all or tighter, which unpacks to many times what was fetched.
// Theirs are full batches, of 1 MB before compression, the most that librdkafka makes by default.
var producing = map[string][]kgo.Opt{
	"snappy": {kgo.ProducerBatchCompression(kgo.SnappyCompression())},
	"none":   {kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(time.Minute), kgo.MaxBufferedBytes(512 << 20)},
	"zstd":   {kgo.ProducerBatchCompression(kgo.ZstdCompression()), kgo.ProducerLinger(time.Minute), kgo.MaxBufferedBytes(512 << 20)},
}

// backlogFigures are what storing a backlog took.
type backlogFigures struct {
	Codec  string `json:"codec"`
	Lanes  int    `json:"lanes"`
	Events int    `json:"events"`
	// Bytes are those of the values, LogBytes those of the topic as the broker keeps it.
	Bytes    int64 `json:"bytes"`
	LogBytes int64 `json:"log_bytes"`
	// PeakMiB is the worker's peak resident memory.
	PeakMiB float64 `json:"peak_mib"`
	// Rate is in rows a second, from the first commit on.
	Rate       float64 `json:"rows_per_second"`
	CPUSeconds float64 `json:"cpu_seconds"`
}

// backlogs measures one worker on a backlog, once for each way to compress it.
func (b *bench) backlogs(ctx context.Context) ([]backlogFigures, error) {
	var all []backlogFigures
	for _, codec := range b.backlog.codecs {
		f := backlogFigures{Codec: codec, Lanes: b.backlog.lanes}
		if err := b.storeBacklog(ctx, producing[codec], &f); err != nil {
			return nil, fmt.Errorf("compressed by %s: %w", codec, err)
		}
		say("backlog: %s: %.0f MiB, %.0f rows/s", f.Codec, f.PeakMiB, f.Rate)
		all = append(all, f)
	}
	return all, nil
}

func (b *bench) storeBacklog(ctx context.Context, opts []kgo.Opt, f *backlogFigures) (err error) {
	topic := "bench-backlog-" + f.Codec
	admin, err := b.admin()
	if err != nil {
		return err
	}
	defer admin.Close()
	defer func() { // the next one needs the space
		_, failed := admin.DeleteTopic(context.WithoutCancel(ctx), topic)
		err = errors.Join(err, failed)
	}()
	say("backlog: %s: filling %d lanes with %d MB", f.Codec, f.Lanes, b.backlog.bytes/1e6)
	if err := b.fill(ctx, topic, opts, f); err != nil {
		return err
	}
	dirs, err := admin.DescribeAllLogDirs(ctx, nil)
	if err != nil {
		return fmt.Errorf("ask for the size of topic %s: %w", topic, err)
	}
	dirs.Each(func(d kadm.DescribedLogDir) {
		for _, lane := range d.Topics[topic] {
			f.LogBytes += lane.Size
		}
	})
	return b.onDatabase(ctx, noIndex, func(db *database) error {
		progress, w, err := b.store(ctx, db, topic, topic, f.Events)
		if err != nil {
			return err
		}
		f.PeakMiB = float64(w.peak) / (1 << 20)
		f.Rate = rate(progress, 1)
		f.CPUSeconds = w.cpuSeconds()
		return nil
	})
}

// fill makes the topic and the events that wait in it.
func (b *bench) fill(ctx context.Context, topic string, opts []kgo.Opt, f *backlogFigures) error {
	producer, err := b.newTopic(ctx, topic, f.Lanes, opts...)
	if err != nil {
		return err
	}
	defer producer.Close()
	generator := sample.New(seed)
	for f.Bytes < b.backlog.bytes {
		key, value := generator.Next(time.Now())
		producer.Produce(ctx, topic, key, value)
		f.Events++
		f.Bytes += int64(len(value))
	}
	if err := producer.Flush(ctx); err != nil {
		return fmt.Errorf("fill topic %s: %w", topic, err)
	}
	return nil
}

func printBacklogs(out *bytes.Buffer, all []backlogFigures) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(out, "\nbacklog: one worker, a full topic, no indexes\n%-8s %6s %9s %9s %8s %9s %9s %8s\n",
		"codec", "lanes", "events", "values MB", "log MB", "rows/s", "CPU s", "peak MiB")
	for _, f := range all {
		fmt.Fprintf(out, "%-8s %6d %9d %9.0f %8.0f %9.0f %9.1f %8.0f\n",
			f.Codec, f.Lanes, f.Events, float64(f.Bytes)/1e6, float64(f.LogBytes)/1e6, f.Rate, f.CPUSeconds, f.PeakMiB)
	}
}
