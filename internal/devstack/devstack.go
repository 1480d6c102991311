// Package devstack runs the servers of `auditsink dev`: a Kafka broker inside
// this process (kfake) and PostgreSQL 18 (embedded-postgres, downloaded once).
// It needs nothing installed but the program itself.
//
// PostgreSQL is run by a child: this same program, started again, whose only
// job is to start PostgreSQL and to stop it as soon as its standard input ends.
// So PostgreSQL goes with its parent even where that is killed. As root the
// child is the user nobody, since PostgreSQL refuses root.
package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Options says what Start starts.
type Options struct {
	// Dir is the folder that keeps all data; empty means dev in the user's
	// cache directory (/var/cache/auditsink/dev for root). With Once it is
	// where the temporary folder is made.
	Dir string
	// Once asks for a fresh temporary folder, which Close removes, and for a
	// PostgreSQL that needn't survive a crash of the machine.
	Once bool
	// Topic is created with this many Partitions (4 if 0) on a fresh broker.
	Topic      string
	Partitions int
	// KafkaPort and PostgresPort on 127.0.0.1; 0 means a free one.
	KafkaPort, PostgresPort int
	// Notice gets one line of text when something takes its time; may be nil.
	Notice func(line string)
}

// Stack is a running broker and PostgreSQL. Its methods may be called from any
// goroutine, Close once.
type Stack struct {
	folder   *folder
	broker   *broker
	postgres *postgres
}

const (
	database = "auditsink"
	account  = "postgres" // also its password: the server listens on loopback alone
)

// Start starts both servers and returns when they can be used. Ending ctx
// abandons a start; it doesn't stop servers that run: Close does.
func Start(ctx context.Context, o Options) (*Stack, error) {
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	if o.Partitions == 0 {
		o.Partitions = 4
	}
	f, err := openFolder(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &Stack{folder: f}
	if s.broker, err = startBroker(f.kafka(), o); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.postgres, err = startPostgres(ctx, f, o); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Dir is the folder that holds all data and logs.
func (s *Stack) Dir() string { return s.folder.dir }

// Brokers are the addresses (host:port) to give to Kafka clients.
func (s *Stack) Brokers() []string { return s.broker.addrs }

// PostgresURL is the URL of the stack's database.
func (s *Stack) PostgresURL() string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(account, account),
		Host:     net.JoinHostPort(loopback, strconv.Itoa(s.postgres.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// PostgresLog is the path of PostgreSQL's log.
func (s *Stack) PostgresLog() string { return s.folder.postgresLog() }

// Done is closed when PostgreSQL has ended, asked to or not; Err says why.
func (s *Stack) Done() <-chan struct{} { return s.postgres.exited }

// Err is nil before Done, and otherwise says why PostgreSQL ended.
func (s *Stack) Err() error {
	select {
	case <-s.postgres.exited:
		return fmt.Errorf("PostgreSQL of the dev stack ended: %w (its log: %s)", s.postgres.reason(), s.folder.postgresLog())
	default:
		return nil
	}
}

// Close stops both servers cleanly and, for Once, removes the folder.
func (s *Stack) Close() error {
	var errs []error
	if s.postgres != nil {
		errs = append(errs, s.postgres.stop())
	}
	if s.broker != nil {
		errs = append(errs, s.broker.close())
	}
	return errors.Join(append(errs, s.folder.close())...)
}

const loopback = "127.0.0.1"

// broker is kfake with its log file.
type broker struct {
	cluster *kfake.Cluster
	log     *os.File
	addrs   []string
}

func startBroker(dir string, o Options) (*broker, error) {
	log, err := openLog(dir + ".log")
	if err != nil {
		return nil, err
	}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("auditsink-dev"),
		kfake.DataDir(dir),
		kfake.SeedTopics(int32(o.Partitions), o.Topic), //nolint:gosec // G115: a handful of partitions.
		kfake.WithLogger(kfake.BasicLogger(log, kfake.LogLevelWarn)),
	}
	if o.KafkaPort != 0 {
		opts = append(opts, kfake.Ports(o.KafkaPort))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the embedded broker on the data in %s (to start afresh, remove the folder): %w", dir, err), log.Close())
	}
	return &broker{cluster: cluster, log: log, addrs: cluster.ListenAddrs()}, nil
}

func (b *broker) close() error {
	b.cluster.Close()
	return b.log.Close()
}
