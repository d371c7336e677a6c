// Command postgres moves a VM with PostgreSQL while pgbench runs in it, back and
// forth, in a lab on this machine. The guest is a Debian whose root is an image that
// both hosts see; the database is in an ext4 on a volume of a volume server.
//
// At the end the guest says how many transactions pgbench did and how many of them
// failed; every one that was acknowledged must be in the table that they all write
// to, and its sums the same as those of the balances. pg_amcheck reads every table
// and index, and e2fsck the file system. The result goes to out/postgres.json.
package main
