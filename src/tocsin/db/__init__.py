"""The database: the pool of connections, what its errors mean, migrations, and every statement."""
