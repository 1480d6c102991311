package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// endToEnd lets a worker of its own process and consumer group store the whole topic.
func (b *bench) endToEnd(ctx context.Context, l *load, f *figures) error {
	return b.onTable(ctx, l, f.Variant, func(db *database) error {
		progress, w, err := b.store(ctx, db, l.topic, fmt.Sprintf("%s-%d", l.topic, f.Round), l.events, b.copies(1))
		if err != nil {
			return err
		}
		if b.commitTimes {
			if progress, err = db.commits(ctx); err != nil {
				return err
			}
			if f.digest, err = db.digest(ctx); err != nil {
				return err
			}
		}
		f.Worker = ratesOf(progress, 1, l.events) // its start and the group's are not what is measured
		f.CPUSeconds = w.cpuSeconds()
		f.BusySeconds = w.busy
		f.PeakMB = float64(w.peak) / 1e6
		return nil
	})
}

// store has a worker store all events of a topic, and requires that each is exactly one row. It returns how that got on, and the worker,
// which has ended.
func (b *bench) store(ctx context.Context, db *database, topic, group string, events int, settings ...string) ([]point, *worker, error) {
	if err := db.checkpoint(ctx); err != nil {
		return nil, nil, err
	}
	w, err := b.startWorker(ctx, db, topic, group, group, settings...)
	if err != nil {
		return nil, nil, err
	}
	progress, err := w.watch(ctx, db, int64(events))
	if err := w.end(ctx, err); err != nil {
		return nil, nil, err
	}
	return progress, w, db.verify(ctx, events)
}

// copies is the setting by which so many workers together send the rows of no more batches at once than the database has cores.
func (b *bench) copies(workers int) string {
	return "AUDITSINK_COPY_CONNS=" + strconv.Itoa(max(1, b.copyConns/workers))
}

// startWorker starts a worker on a topic, with settings as NAME=VALUE besides those of the benchmark. Its log goes to a file of that name.
func (b *bench) startWorker(ctx context.Context, db *database, topic, group, name string, settings ...string) (*worker, error) {
	return startWorker(ctx, b.binary, filepath.Join(b.folder, name+".log"), slices.Concat([]string{
		"AUDITSINK_KAFKA_BROKERS=" + strings.Join(b.kafka.Brokers(), ","),
		"AUDITSINK_KAFKA_TOPICS=" + topic,
		"AUDITSINK_KAFKA_GROUP=" + group,
		"AUDITSINK_POSTGRES_URL=" + db.url,
		"AUDITSINK_FLUSH_ROWS=" + strconv.Itoa(b.flushRows),
		"AUDITSINK_HTTP_ADDR=127.0.0.1:0",
	}, settings, b.settings))
}
