package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"auditsink/config"
	"auditsink/internal/kafka"
	"auditsink/internal/sample"
)

const (
	// grace is how long after an interrupt the brokers may take to
	// acknowledge what was handed to them.
	grace = 10 * time.Second
	// maxLine bounds the memory that a line of a file takes. No broker takes
	// records of that size.
	maxLine = 64 << 20
)

func newProduceCommand() *cobra.Command {
	var p production
	var file, topic string
	cmd := &cobra.Command{
		Use:   "produce",
		Short: "Publish sample events, or the lines of a file",
		Long: `Publish sample events of invented clinics, or the lines of a file as they are.

Only a line feed parts lines and is removed; blank lines are skipped. The topic
is the first one named in ` + config.Prefix + `KAFKA_TOPICS, unless --topic says otherwise.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkRate(p.rate); err != nil {
				return err
			}
			cfg, err := config.Load(config.Kafka)
			if err != nil {
				return err
			}
			if p.topic, err = produceTopic(cfg, topic); err != nil {
				return err
			}
			if file == "" {
				p.next = samples(rand.Uint64()) //nolint:gosec // G404: sample data needn't be secret.
			} else {
				src, err := openInput(cmd, []string{file})
				if err != nil {
					return err
				}
				defer func() { _ = src.Close() }() // only read from
				ctx, cancel := context.WithCancel(cmd.Context())
				defer cancel()
				p.next = p.fileLines(ctx, src)
				if !cmd.Flags().Changed("events") {
					p.events = 0
				}
			}
			return p.publish(cmd.Context(), cfg, cmd.OutOrStdout(), consoleLogger(cmd.ErrOrStderr(), zapcore.WarnLevel))
		},
	}
	cmd.Flags().Uint64Var(&p.events, "events", 1000, "how many events; 0: without end (a file: up to its end, also the default there)")
	cmd.Flags().Float64Var(&p.rate, "rate", 0, "events a second; 0: as fast as possible")
	cmd.Flags().StringVar(&file, "file", "", "publish the lines of this file instead; -: standard input")
	cmd.Flags().StringVar(&topic, "topic", "", "topic to publish to")
	return cmd
}

// produceTopic is the topic to publish to: an expression can't be one.
func produceTopic(cfg config.Config, flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if names, _ := kafka.Topics(cfg.KafkaTopics); len(names) > 0 {
		return names[0], nil
	}
	return "", &config.Error{Problems: []config.Problem{{
		Variable: config.Prefix + "KAFKA_TOPICS",
		Cause:    "names no topic to publish to",
		Remedy:   "Name one there, or by --topic.",
	}}}
}

// production is a series of records to publish.
type production struct {
	topic  string
	events uint64  // 0: until next ends
	rate   float64 // events a second, 0: as fast as possible
	// next returns the next record, or io.EOF. The slices become the caller's.
	next  func() (key, value []byte, err error)
	blank int // lines skipped
}

// samples invents records without end.
func samples(seed uint64) func() (key, value []byte, err error) {
	g := sample.New(seed)
	return func() (key, value []byte, err error) {
		key, value = g.Next(time.Now())
		return key, value, nil
	}
}

// line is what was read of a file.
type line struct {
	value []byte
	blank int // lines skipped so far
	err   error
}

// fileLines are the lines that aren't blank. They are read by a goroutine that
// ends with ctx, since reading, from a person for example, can't be interrupted.
func (p *production) fileLines(ctx context.Context, src io.Reader) func() (key, value []byte, err error) {
	read := make(chan line)
	go func() {
		r := &lines{r: bufio.NewReaderSize(src, 64<<10)}
		blank := 0
		for n := 1; ; n++ {
			value, err := fileLine(r, n)
			if err == nil && len(bytes.TrimSpace(value)) == 0 {
				blank++
				continue
			}
			select {
			case read <- line{value, blank, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return func() (key, value []byte, err error) {
		select {
		case l := <-read:
			p.blank = l.blank
			return nil, l.value, l.err
		case <-ctx.Done():
			return nil, nil, io.EOF
		}
	}
}

// fileLine reads line n, or returns io.EOF.
func fileLine(r *lines, n int) ([]byte, error) {
	more, err := r.next()
	if err == nil && !more {
		return nil, io.EOF
	}
	var value []byte
	if err == nil {
		value, err = io.ReadAll(io.LimitReader(r, maxLine+1))
	}
	if err != nil {
		return nil, fmt.Errorf("read line %d of the input: %w", n, err)
	}
	if len(value) > maxLine {
		return nil, inputError(n, fmt.Sprintf("is longer than %d MiB, more than a broker takes", maxLine>>20))
	}
	return value, nil
}

// publish publishes the series and says what came of it.
func (p *production) publish(ctx context.Context, cfg config.Config, out io.Writer, log *zap.Logger) error {
	if err := topicExists(ctx, cfg, p.topic, log); err != nil {
		return kafka.Explain(err, cfg)
	}
	producer, err := kafka.NewProducer(cfg, log)
	if err != nil {
		return err
	}
	defer producer.Close()
	begin := time.Now()
	err = p.run(ctx, producer)
	acknowledged, took := producer.Acknowledged(), time.Since(begin)
	_, printed := fmt.Fprintf(out, "published %d events to topic %s in %.2f s (%.0f/s)", acknowledged, p.topic, took.Seconds(), float64(acknowledged)/took.Seconds())
	if p.blank > 0 && printed == nil {
		_, printed = fmt.Fprintf(out, ", skipped %d blank lines", p.blank)
	}
	if printed == nil {
		_, printed = fmt.Fprintln(out)
	}
	return errors.Join(err, printed)
}

// topicExists asks the brokers, so that a wrong address or name is told at once
// and not after retries.
func topicExists(ctx context.Context, cfg config.Config, topic string, log *zap.Logger) error {
	opts, err := kafka.Options(cfg, log)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("make a Kafka client: %w", err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	return kafka.CheckTopics(ctx, kadm.NewClient(client), []string{topic})
}

// run hands the records to the producer and waits for the acknowledgements.
// When ctx ends, no more are handed over.
func (p *production) run(ctx context.Context, producer *kafka.Producer) error {
	// What was handed over is still published after an interrupt, but not
	// waited for without end.
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-lasting.Done():
		case <-time.After(grace):
			cancel()
		}
	})
	defer stop()

	var failed error
	pace := newPace(p.rate)
	for n := uint64(0); p.events == 0 || n < p.events; n++ {
		if !pace.wait(ctx) {
			break
		}
		key, value, err := p.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			failed = err
			break
		}
		producer.Produce(lasting, p.topic, key, value)
	}
	return errors.Join(failed, producer.Flush(lasting))
}

// pace spreads events evenly over time. One that is late is made up for.
type pace struct {
	interval time.Duration // 0: no waiting
	due      time.Time
}

// checkRate refuses what is no number of events a second.
func checkRate(rate float64) error {
	if rate >= 0 && rate <= 1e9 {
		return nil
	}
	return &usageError{fmt.Errorf("--rate %v isn't a number of events a second", rate)}
}

func newPace(rate float64) *pace {
	p := &pace{due: time.Now()}
	if rate > 0 {
		p.interval = time.Duration(float64(time.Second) / rate)
	}
	return p
}

// wait returns true when the next event is due, or false when ctx has ended.
func (p *pace) wait(ctx context.Context) bool {
	ahead := time.Until(p.due)
	p.due = p.due.Add(p.interval)
	if p.interval > 0 && ahead > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(ahead):
		}
	}
	return ctx.Err() == nil
}
